"""What others made, as its small files describe it: compared with the run before anything large is read."""
