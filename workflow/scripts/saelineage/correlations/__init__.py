"""Similarities between the features of two SAEs, and the matches kept of them."""
