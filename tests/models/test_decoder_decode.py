"""decoder: a text read in parts through the cache has the same states."""

import jax
import numpy as np
import test_decoder

from dpo_jax import types
from dpo_jax.models import decoder

TEXTS = ([3, 9, 4, 11, 7, 2, 5, 8], [8, 2, 6, 1, 12])
FIRST = (5, 2)  # tokens of the first part; the rest follows one by one


def rows(columns):
  """One row per list of (token, position) pairs, right-padded."""
  longest = max(map(len, columns))
  fields = np.zeros((6, len(columns), longest), np.int32)
  for r, pairs in enumerate(columns):
    for i, (token, position) in enumerate(pairs):
      fields[:3, r, i] = token, position, 1
  return types.Rows(*fields)


def pairs(text, start, end):
  """Tokens of text[start:end] with their positions."""
  return [(text[i], i) for i in range(start, min(end, len(text)))]


def test_a_text_in_parts_equals_the_text_at_once():
  # Windows, two ropes, soft-caps; each row has a length of its own.
  model = decoder.make_model(test_decoder.small('gemma3'), attention_block=3)
  params = test_decoder.make_params(model)
  parts = [rows([pairs(t, 0, n) for t, n in zip(TEXTS, FIRST)])]
  parts += [
    rows([pairs(t, n + i, n + i + 1) for t, n in zip(TEXTS, FIRST)])
    for i in range(3)
  ]

  @jax.jit
  def in_parts(params):
    cache, states = model.make_cache(2, 9), []
    for part in parts:
      hidden_RLD, cache = model.decode(params, part, cache)
      states.append(hidden_RLD)
    return states, cache.num_slots

  at_once = rows([pairs(t, 0, len(t)) for t in TEXTS])
  want = jax.jit(lambda p: model.hidden(p, at_once)[0])(params)
  states, num_slots = in_parts(params)
  assert int(num_slots) == 5 + 3
  for r, n in enumerate(FIRST):
    got = np.concatenate([states[0][r, :n], *(s[r] for s in states[1:])])
    np.testing.assert_allclose(got, want[r, : n + 3], atol=2e-5)
  assert np.abs(want).max() > 0.1
