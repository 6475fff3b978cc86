"""The library behind saelineage's workflow: one module per stage, importable without Snakemake."""
