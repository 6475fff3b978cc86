"""Files: atomic writes, tensors, tables, checks of third-party files, and the hub."""
