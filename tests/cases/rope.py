"""Cases of rotary positions: the kinds that scale them, as in transformers."""

import json

import jax
import numpy as np
import rope_cases
from cases.case import Case

from dpo_jax import types
from dpo_jax.models import architectures, decoder, output_head


def rope(name, length):
  """Whether logits are those that transformers gave for the same weights."""

  def ours(_):
    expected = json.loads(rope_cases.GOLDEN.read_text())[name][str(length)]
    config = architectures.from_hf_config(rope_cases.CONFIGS[name])
    model, params = decoder.make_model(config), rope_cases.params(name)
    fields = np.zeros((3, 1, 96), np.int32)
    fields[:, 0, :length] = (
      rope_cases.tokens(length),
      np.arange(length),
      np.ones(length),
    )
    zeros = np.zeros((1, 96), np.int32)
    rows = types.Rows(*fields, zeros, zeros, zeros - 1)
    hidden = jax.jit(lambda p, r: model.hidden(p, r)[0])(params, rows)
    logits = np.asarray(output_head.logits(model.head(params), hidden[0]))
    kept = logits[:length][rope_cases.KEPT, ::4]
    return f'within 2e-4: {np.abs(kept - np.array(expected)).max() < 2e-4}'

  return ours


CASES = [
  Case(
    'rope',
    f'{name}, {length} tokens',
    'within 2e-4: True',
    rope(name, length),
  )
  for name in rope_cases.CONFIGS
  for length in (20, 90)
]
