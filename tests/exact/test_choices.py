"""Choices: every registered loss is used or left out; words are read."""

import pytest

from dpo_jax.exact import choices
from dpo_jax.losses import registry
from dpo_jax.types import InputError


def test_every_loss_is_usable_or_left_out_with_a_reason():
  assert set(choices.usable()) | set(choices.LEFT_OUT) == set(registry.names())
  assert len(choices.usable()) >= 35 and all(choices.LEFT_OUT.values())
  read = choices.read('default')
  assert {choice.name for choice in read} <= set(choices.usable())
  assert len(choices.read('all')) == len(choices.usable())


def test_settings_and_noise():
  plain, robust, fixed = choices.read(
    'sigmoid,robust:label_smoothing=noise,sigmoid:label_smoothing=0.1'
  )
  assert plain.hyper(0.5, 0.2) == {'beta': 0.5, 'label_smoothing': 0.0}
  assert robust.hyper(0.5, 0.2) == {'beta': 0.5, 'label_smoothing': 0.2}
  assert fixed.hyper(0.5, 0.2) == {'beta': 0.5, 'label_smoothing': 0.1}
  assert plain.label == 'DPO' and fixed.label == 'DPO (label_smoothing=0.1)'
  (nll,) = choices.read('nll')
  assert nll.hyper(0.5, 0.2) == {}
  assert len(choices.read('sigmoid,sigmoid')) == 1


@pytest.mark.parametrize(
  'words,expected',
  [
    ('dpo', "dpo is 'sigmoid' here"),
    ('ipoo', "did you mean 'ipo'?"),
    ('odpo', 'odpo has no place here, it needs the higher reward'),
    ('ipo:alpha=1', "'alpha' is not allowed; fix: use one of none"),
    ('sigmoid:beta=1', "'beta' is not allowed"),
    ('sigmoid:label_smoothing=0.7', '0.7 is not allowed; fix: use one in'),
    ('sigmoid:label_smoothing=x', "'x' is not a number"),
  ],
)
def test_refusals(words, expected):
  with pytest.raises(InputError) as error:
    choices.read(words)
  assert expected in str(error.value)
