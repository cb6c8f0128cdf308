"""The decoder, its architectures and its attention."""
