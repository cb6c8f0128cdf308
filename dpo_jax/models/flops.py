"""Arithmetic that a step needs: matmuls only, each counted once.

Comes in: a decoder's shape and counts of tokens. Goes out: floating-point
operations. Does not count padding, recomputation and unscored logits, so that
every way of computing the same step has the same number.
"""

from typing import NamedTuple

from dpo_jax.models.decoder_config import DecoderConfig


class Work(NamedTuple):
  """Counts of one forward pass; floats, since they may be means."""

  tokens: float  # positions that the layers process
  attended: float  # pairs of a query and a key that it sees, in one layer
  predicted: float  # positions whose logits are needed


def forward_flops(config: DecoderConfig, work: Work) -> float:
  """Returns operations of one forward pass; a multiply-add counts as two.

  Args:
    config: shape of the decoder.
    work: counts of tokens and pairs.
  """
  heads = config.num_heads * config.head_size
  kv_heads = config.num_kv_heads * config.head_size
  mlp = (3 if config.gated_mlp else 2) * config.mlp_width
  if config.num_experts:
    # The chosen experts, and the router's matmul.
    mlp = config.experts_per_token * mlp + config.num_experts
  # Per position and layer: query and output, key and value, MLP.
  per_token = 2 * config.width * (2 * heads + 2 * kv_heads + mlp)
  per_pair = 4 * heads  # q.k and the weighted sum of v
  layers = work.tokens * per_token + work.attended * per_pair
  head = 2 * config.width * config.vocab_size * work.predicted
  return float(config.num_layers * layers + head)


def shared_work(prompt_length: int, completion_lengths: list[int]) -> Work:
  """Returns the least work of one prompt with its completions.

  The prompt is computed once for all its completions, which is the layout of
  data/batches/rows.py.

  Args:
    prompt_length: tokens of the prompt.
    completion_lengths: tokens of each completion.
  """
  # The prompt's last token begins every branch, so the trunk lacks it.
  trunk = prompt_length - 1
  branches = sum(completion_lengths)
  pairs = attended(trunk, completion_lengths)
  return Work(trunk + branches, pairs, branches)


def attended(trunk: int, branches: list[int]) -> int:
  """Returns the query-key pairs of a trunk and of branches that see it.

  Args:
    trunk: tokens of the trunk.
    branches: tokens of each branch; a branch sees the trunk and itself.
  """
  pairs = trunk * (trunk + 1) // 2
  return pairs + sum(n * trunk + n * (n + 1) // 2 for n in branches)
