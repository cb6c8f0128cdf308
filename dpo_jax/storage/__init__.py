"""All disk I/O: run directories, checkpoints, weights, caches."""
