"""Documents from their sources, in three splits."""
