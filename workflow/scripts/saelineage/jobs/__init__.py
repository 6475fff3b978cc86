"""What surrounds a job: its log, locks, manifest, checkpoints, GPU, and the list of all jobs. Used by scripts alone."""
