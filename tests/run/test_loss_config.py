"""loss_config: the losses that a config chooses, and what else is scored."""

import numpy as np
import pytest

from dpo_jax import config as config_lib
from dpo_jax.run import loss_config


def chosen(**values):
  config = config_lib.base()
  with config.unlocked():
    config.loss.update(values)
  return loss_config.make(config)


def test_terms_choices_options_and_numbers_are_the_configs():
  objective, hyper = chosen(
    terms={'ipo': 0.5, 'nll': 0.0}, beta=0.2, reduction='sum', wpo=True
  )
  assert objective.terms == ('ipo',) and objective.options == ('wpo',)
  assert ('reduction', 'sum') in objective.static
  assert float(hyper['beta']) == np.float32(0.2)
  assert float(hyper['weight/ipo']) == 0.5


@pytest.mark.parametrize(
  'names,needs',
  [
    ((), {'reference'}),
    (('kto',), {'mismatched'}),
    (('tdpo1', 'wpo'), {'distributions', 'sum_sq_probs'}),
    (('ld_alpha', 'sigmoid'), {'heads'}),
  ],
)
def test_further_names_add_their_needs_alone(names, needs):
  objective, _ = chosen(terms={'sigmoid': 1.0})
  scored = loss_config.with_names(objective, names)
  assert objective.needs | needs <= scored.needs
  assert scored.terms[0] == 'sigmoid'
  assert len(set(scored.terms)) == len(scored.terms)
  if not names:
    assert scored == objective
