"""Sparse autoencoders: the module, its training, imports and metrics."""
