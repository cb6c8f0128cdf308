"""A toy language model and batches for tests that need no decoder."""

import numpy as np

from dpo_jax import types

VOCAB, WIDTH = 19, 6


class ToyModel:
  """Like a bigram model: the next token depends on this token and position."""

  def __init__(self, softcap=None, scale=1.0):
    self._softcap, self._scale = softcap, scale

  def hidden(self, params, rows):
    return params['embed'][rows.tokens] + params['pos'][rows.positions], {}

  def head(self, params):
    return types.Head(
      params['head'], params['bias'], self._scale, self._softcap
    )


def params(seed=0):
  rng = np.random.default_rng(seed)
  shapes = {
    'embed': (VOCAB, WIDTH),
    'pos': (32, WIDTH),
    'head': (VOCAB, WIDTH),
    'bias': (VOCAB,),
  }
  return {
    k: rng.normal(size=shape).astype(np.float32) for k, shape in shapes.items()
  }


def reference(seed=0):
  """The toy's parameters as the reference of a step."""
  return types.Frozen(weights=params(seed))


def batch(num_pairs=8, microbatches=1, length=16, seed=1, row_multiple=1):
  """Pairs of unequal lengths, one prompt + completion per row."""
  rng = np.random.default_rng(seed)
  rows = _rows(rng, 2 * num_pairs, microbatches, length, row_multiple)
  comparisons = types.Comparisons(
    winner=np.arange(num_pairs, dtype=np.int32) * 2,
    loser=np.arange(num_pairs, dtype=np.int32) * 2 + 1,
    weight=rng.uniform(0.5, 2, num_pairs).astype(np.float32),
    margin=rng.uniform(0, 2, num_pairs).astype(np.float32),
  )
  return types.Batch(
    rows=rows,
    comparisons=comparisons,
    labels=np.tile([1, 0], num_pairs).astype(np.int32),
    scores=rng.normal(size=2 * num_pairs).astype(np.float32),
    prompt_index=np.repeat(np.arange(num_pairs), 2).astype(np.int32),
  )


def zoo(microbatches=1, length=16, seed=1, row_multiple=1):
  """Eight prompts with everything that a loss may need.

  In prompt i, completion 3 i wins over 3 i + 1, and 3 i + 2 is another prompt's
  answer (mismatched). The answers of the last two prompts are labelled as well.
  """
  rng = np.random.default_rng(seed)
  rows = _rows(rng, 24, microbatches, length, row_multiple)
  winner = np.arange(8, dtype=np.int32) * 3
  labels = np.tile([-1, -1, -1], 8).astype(np.int32)
  labels[18:] = [1, 0, -1, 1, 0, -1]
  scores = rng.normal(size=(8, 3)).astype(np.float32)
  scores[:, 0] = scores[:, 1] + rng.uniform(0.5, 2, 8)
  return types.Batch(
    rows=rows,
    comparisons=types.Comparisons(
      winner=winner,
      loser=winner + 1,
      weight=rng.uniform(0.5, 2, 8).astype(np.float32),
      margin=rng.uniform(0, 2, 8).astype(np.float32),
    ),
    labels=labels,
    scores=scores.reshape(-1),
    prompt_index=np.repeat(np.arange(8), 3).astype(np.int32),
    mismatched=np.tile([0, 0, 1], 8).astype(np.int32),
    quantiles=np.tile([1.0, 0.25, 0.0], 8).astype(np.float32),
  )


def _rows(rng, num_completions, microbatches, length, row_multiple):
  each = num_completions // microbatches
  num_rows = each + -each % row_multiple
  shape = (microbatches, num_rows, length)
  rows = {f: np.zeros(shape, np.int32) for f in types.Rows._fields}
  rows['completion_id'] -= 1
  for i in range(num_completions):
    m, r = divmod(i, each)
    prompt, n = int(rng.integers(1, 5)), int(rng.integers(1, 10))
    ids = rng.integers(0, VOCAB, prompt + n)
    used, start = prompt + n - 1, prompt - 1
    rows['tokens'][m, r, :used] = ids[:-1]
    rows['positions'][m, r, :used] = np.arange(used)
    rows['prompt_id'][m, r, :used] = 1
    rows['branch'][m, r, start:used] = 1
    rows['targets'][m, r, start:used] = ids[prompt:]
    rows['completion_id'][m, r, start:used] = i
  return types.Rows(**rows)
