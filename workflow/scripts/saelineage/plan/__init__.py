"""What a run consists of: its config, models, SAEs and comparisons, paths and needs."""
