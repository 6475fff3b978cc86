"""Around a job: its log, locks, manifests, checkpoints and GPU, and the list of all jobs. Used by scripts only."""
