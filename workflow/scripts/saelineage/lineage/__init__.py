"""Verdicts per feature and edge, and the evidence for them."""
