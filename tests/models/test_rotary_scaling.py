"""yarn, longrope and dynamic rotary positions: the logits of transformers."""

import json

import jax
import numpy as np
import pytest
import rope_cases

from dpo_jax import types
from dpo_jax.models import architectures, decoder, output_head, rotary
from dpo_jax.models.decoder_config import Rope
from dpo_jax.types import InputError

EXPECTED = json.loads(rope_cases.GOLDEN.read_text())


def lone(tokens, width):
  """One text in a row of its own, padded to a width."""
  fields = np.zeros((3, 1, width), np.int32)
  length = len(tokens)
  fields[:, 0, :length] = tokens, np.arange(length), np.ones(length)
  zeros = np.zeros((1, width), np.int32)
  return types.Rows(*fields, zeros, zeros, zeros - 1)


@pytest.fixture(scope='module', params=rope_cases.CONFIGS)
def made(request):
  """(name, model, parameters, jitted logits of Rows)."""
  model = decoder.make_model(rope_cases.decoder_config(request.param))
  params = rope_cases.params(request.param)

  def logits(params, rows):
    hidden = model.hidden(params, rows)[0]
    return output_head.logits(model.head(params), hidden[0])

  return request.param, model, params, jax.jit(logits)


def test_logits_equal_those_of_transformers(made):
  name, _, params, logits = made
  for length in rope_cases.LENGTHS:
    tokens = rope_cases.tokens(length)
    ours = np.asarray(logits(params, lone(tokens, 96)))[:length]
    theirs = np.array(EXPECTED[name][str(length)])
    assert np.abs(theirs).max() > 2
    np.testing.assert_allclose(
      ours[rope_cases.KEPT, ::4], theirs, atol=2e-4, rtol=0
    )


def test_the_written_config_gives_the_same_decoder(made):
  config = rope_cases.decoder_config(made[0])
  written = json.loads(json.dumps(architectures.to_hf_config(config)))
  assert architectures.from_hf_config(written) == config
  old = {k: v for k, v in written.items() if k != 'rope_parameters'}
  assert architectures.from_hf_config(old) == config


def test_branches_of_a_prompt_rotate_as_its_longest_text(made):
  name, model, params, _ = made
  text, other = rope_cases.tokens(90), rope_cases.tokens(33)
  prompt, long, short = text[:30], text[30:], other[30:]
  last = len(prompt) - 1
  # The trunk, two branches, then a short text of another prompt.
  columns = [(t, i, 1, 0) for i, t in enumerate(prompt[:-1])]
  for branch, answer in enumerate((long, short), start=1):
    inputs = [prompt[-1], *answer[:-1]]
    columns += [(t, last + i, 1, branch) for i, t in enumerate(inputs)]
  lonely = rope_cases.tokens(20)
  columns += [(t, i, 2, 0) for i, t in enumerate(lonely)]
  columns += [(0, 0, 0, 0)] * (140 - len(columns))
  fields = np.array(columns, np.int32).T[:, None]
  zeros = np.zeros(fields.shape[1:], np.int32)
  packed = types.Rows(*fields, zeros, zeros - 1)
  lengths = np.asarray(rotary.text_lengths(packed))[0]
  num_first = last + len(long) + len(short)
  assert set(lengths[:num_first]) == {90}
  assert set(lengths[num_first : num_first + 20]) == {20}
  hidden = jax.jit(lambda p, r: model.hidden(p, r)[0])
  states = np.asarray(hidden(params, packed))[0]
  alone = np.asarray(hidden(params, lone(text, 96)))[0]
  np.testing.assert_allclose(
    states[last : last + len(long)], alone[last:89], atol=2e-5
  )
  alone = np.asarray(hidden(params, lone(lonely, 96)))[0]
  np.testing.assert_allclose(
    states[num_first : num_first + 20], alone[:20], atol=2e-5
  )


def test_a_text_within_the_original_length_has_fixed_frequencies():
  # A row that short never asks for the length of its texts.
  rope = Rope(scaling='dynamic', factor=2.0, original_positions=32)
  assert rope.by_length and rope.frequencies(8) == Rope().frequencies(8)
  lengths = np.full((1, 4), 32)
  same = rotary.dynamic_frequencies(rope, 8, lengths)[0, 0]
  np.testing.assert_allclose(same, rope.frequencies(8), rtol=1e-6)


@pytest.mark.parametrize(
  ('rope', 'words'),
  [
    ({'rope_type': 'yarn', 'factor': -1.0}, 'factor = -1.0'),
    ({'rope_type': 'yarn', 'factor': 2.0, 'truncate': 3}, 'truncate = 3'),
    (
      {'rope_type': 'longrope', 'short_factor': [1.0] * 4},
      'long_factor = None',
    ),
    (
      {'rope_type': 'longrope', 'short_factor': 4, 'long_factor': [1.0] * 4},
      'short_factor = 4 cannot be used; fix: a list of 4 numbers',
    ),
    (
      {'rope_type': 'longrope', 'short_factor': [1, 2, 'x', 4]},
      'numbers above 0',
    ),
    ({'rope_type': 'dynamic'}, "'factor' is missing"),
    ({'rope_type': ['yarn']}, "rope_type ['yarn'] is not built"),
  ],
)
def test_refused_in_one_line(rope, words):
  mapping = rope_cases.CONFIGS['yarn'] | {'rope_scaling': rope}
  with pytest.raises(InputError) as error:
    architectures.from_hf_config(mapping)
  assert words in str(error.value) and '; fix: ' in str(error.value)
