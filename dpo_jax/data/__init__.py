"""From records to planned batches; numpy only, no jax."""
