"""registry: a decorated function is a reward; unknown names are refused."""

import numpy as np
import pytest

from dpo_jax.rewards import registry
from dpo_jax.types import InputError


def test_a_decorated_function_scores_many_answers(monkeypatch):
  monkeypatch.setattr(registry, '_REWARDS', {})

  @registry.reward(label='Letters', unit='letters')
  def letters(answer):
    return len(answer.completion)

  made = registry.get('letters')
  assert (made.name, made.label, made.unit) == ('letters', 'Letters', 'letters')
  answers = [registry.Answer('p', text, '', 0) for text in ('a', 'bcd')]
  scores = made.score(answers)
  assert scores.dtype == np.float64 and scores.tolist() == [1, 3]


def test_names_have_labels_and_units():
  assert {'lexicon', 'length', 'length_words'} < {*registry.names()}
  for name in registry.names():
    if ':' not in name:
      made = registry.get(name)
      assert made.name == name and made.label and made.unit


@pytest.mark.parametrize(
  'name,words',
  [
    ('lexcon', "did you mean 'lexicon'?"),
    ('', "'' is not a reward"),
    ('classifier', 'use one of '),
    ('classifier:', 'use one of '),
  ],
)
def test_a_name_that_is_none_is_refused(name, words):
  with pytest.raises(InputError) as error:
    registry.get(name)
  assert words in str(error.value) and '\n' not in str(error.value)
