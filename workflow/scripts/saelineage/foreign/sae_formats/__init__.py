"""Formats of third-party SAEs: their files, what their configs say, and what of it cannot be imported."""
