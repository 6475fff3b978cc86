"""Crosscoders: one dictionary for several models, its training, files, and the scaling of its latents by model."""
