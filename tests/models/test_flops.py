"""flops: one step by hand."""

from dpo_jax.models import decoder_config, flops


def test_flops_of_a_tiny_step_by_hand():
  config = decoder_config.DecoderConfig(
    vocab_size=11,
    width=4,
    mlp_width=6,
    num_layers=3,
    num_heads=2,
    num_kv_heads=1,
    head_size=2,
  )
  # Prompt of 3 (trunk 2), answers of 1 and 2 tokens: 5 slots; the trunk
  # attends 1 + 2, the branches 3 and 3 + 4 keys; 3 tokens are predicted.
  work = flops.shared_work(3, [1, 2])
  assert work == flops.Work(tokens=5, attended=13, predicted=3)
  per_token = 2 * (4 * 4 + 2 * 4 * 2 + 4 * 4 + 3 * 4 * 6)
  expected = 3 * (5 * per_token + 13 * 4 * 4) + 2 * 4 * 11 * 3
  assert flops.forward_flops(config, work) == expected
