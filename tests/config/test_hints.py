"""Hints: names of other trainers lead to the names here."""

import pytest

from dpo_jax import config, losses
from dpo_jax.config import hints, knobs
from dpo_jax.losses import rules as loss_rules
from dpo_jax.types import InputError


def test_every_name_leads_to_a_key_that_exists():
  assert set(hints.KEYS.values()) <= set(knobs.flat())
  # A key of ours is never explained away.
  known = set(knobs.flat())
  assert not [name for name in known if hints.KEYS.get(name, name) != name]


@pytest.mark.parametrize(
  'key,meant',
  [
    ('optim.lr', 'config.optim.learning_rate'),
    ('lr', 'config.optim.learning_rate'),
    ('train.max_steps', 'config.train.num_steps'),
    ('num_train_epochs', 'config.train.num_epochs'),
    ('per_device_train_batch_size', 'config.train.batch_size'),
    ('adapter.lora_r', 'config.adapter.rank'),
    ('model_name_or_path', 'config.model.init_from'),
    ('data.max_prompt_length', 'config.data.prompt_max_length'),
    ('loss_type', 'config.loss.terms.sigmoid=1'),
    ('rpo_alpha', 'config.loss.terms.nll'),
    ('loss.terms.dpo', "'sigmoid'"),
    ('loss.terms.rpo', 'config.loss.terms.sigmoid=1, config.loss.terms.nll=1'),
    ('optim.learning_rat', "did you mean 'optim.learning_rate'?"),
  ],
)
def test_an_override_that_another_trainer_has(key, meant, quickstart):
  with pytest.raises(InputError) as error:
    config.load(quickstart('dpo'), [(key, '1')])
  _, _, fix = str(error.value).partition('; fix: ')
  assert meant in fix and ';' not in fix


@pytest.mark.parametrize(
  'name,meant',
  [
    ('dpo', "fix: dpo is 'sigmoid' here; losses are "),
    ('DPO', "'sigmoid'"),
    ('rpo', 'config.loss.terms.sigmoid=1, config.loss.terms.nll=1'),
    ('mpo', 'config.loss.terms.sigmoid=0.8, config.loss.terms.bco=0.2'),
    ('cdpo', 'config.loss.label_smoothing'),
    ('sppo', "'sppo_hard'"),
    ('ip0', "did you mean 'ipo'?"),
  ],
)
def test_a_loss_that_another_trainer_has(name, meant):
  with pytest.raises(InputError) as error:
    chosen = config.base()
    chosen.loss.terms = {name: 1.0}
    chosen.data.train = 'synthetic'
    chosen.model.preset = 'tiny'
    chosen.train.num_steps = 1
    config.validate(chosen)
  assert meant in str(error.value)


def test_no_loss_here_is_explained_away():
  known = losses.names()
  assert not set(known) & {*loss_rules._ALIASES, *loss_rules._RECIPES}
  assert set(loss_rules._ALIASES.values()) <= set(known)
