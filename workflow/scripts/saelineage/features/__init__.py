"""Sparse latents over the probe."""
