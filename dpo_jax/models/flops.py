"""How much arithmetic a step needs: matmuls only, nothing done twice.

Comes in: a decoder's shape and counts of tokens. Goes out: floating-point
operations. Counts no padding, no recomputation and no unscored logits, so
that it is the same number for every way of computing the same step.
"""

from typing import NamedTuple

from dpo_jax.models.decoder_config import DecoderConfig


class Work(NamedTuple):
  """What one forward pass must compute; means need not be whole."""

  tokens: float  # positions that the layers run on
  attended: float  # query-key pairs that see each other, summed over queries
  predicted: float  # positions whose logits are needed


def forward_flops(config: DecoderConfig, work: Work) -> float:
  """Operations of one forward pass; a multiply-add is two.

  Args:
    config: the decoder's shape.
    work: what it runs on.
  """
  heads = config.num_heads * config.head_size
  kv_heads = config.num_kv_heads * config.head_size
  mlp = (3 if config.gated_mlp else 2) * config.mlp_width
  if config.num_experts:  # those that are chosen, and the router
    mlp = config.experts_per_token * mlp + config.num_experts
  per_token = 2 * config.width * (2 * heads + 2 * kv_heads + mlp)
  per_pair = 4 * heads  # q.k and the weighted sum of v
  layers = work.tokens * per_token + work.attended * per_pair
  head = 2 * config.width * config.vocab_size * work.predicted
  return float(config.num_layers * layers + head)


def shared_work(prompt_length: int, completion_lengths: list[int]) -> Work:
  """The least work of one prompt with its completions, the prompt once."""
  trunk = prompt_length - 1
  branches = sum(completion_lengths)
  pairs = attended(trunk, completion_lengths)
  return Work(trunk + branches, pairs, branches)


def attended(trunk: int, branches: list[int]) -> int:
  """Query-key pairs of a trunk of tokens and the branches that see it."""
  pairs = trunk * (trunk + 1) // 2
  return pairs + sum(n * trunk + n * (n + 1) // 2 for n in branches)
