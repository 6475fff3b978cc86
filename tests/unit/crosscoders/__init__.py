"""Tests of saelineage.crosscoders."""
