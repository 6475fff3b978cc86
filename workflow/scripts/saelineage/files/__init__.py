"""Files: whole or not at all, tensors, tables, and files that come from elsewhere."""
