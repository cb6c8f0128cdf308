"""config -> a run: data, weights, jitted steps, and one file per command."""
