"""The plan of a run: its config, models, SAEs, comparisons, paths and needs."""
