"""Language models: loading, training, merging, next-token losses."""
