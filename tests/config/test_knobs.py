"""config.knobs: every key of base(), and choices read from their owners."""

import inspect
import subprocess
import sys

import pytest
from ml_collections import config_dict

from dpo_jax import config, optim, types
from dpo_jax.config import knobs, rules
from dpo_jax.data.batches import rows


def test_every_knob_is_a_key_and_its_rule_takes_its_default():
  values = rules.flatten(config.base())
  assert set(values) == set(knobs.flat())
  for key, value in values.items():
    knob = knobs.find(key)
    assert value == knob.default, key
    # Which data is the one thing that has no default.
    assert knob.rule.holds(value) == (key != 'data.train'), key


def test_every_key_has_the_type_of_its_knob():
  base = config.base()
  for key, knob in knobs.flat().items():
    section, _, name = key.rpartition('.')
    assert (base[section] if section else base).get_type(name) is knob.kind, key
    if knob.default is not None and knob.kind is not object:
      assert type(knob.default) is knob.kind, key


def test_base_is_locked_except_for_the_terms():
  base = config.base()
  for section in (base, base.data, base.loss):
    with pytest.raises((AttributeError, KeyError)):
      section.typo = 1
  base.loss.terms.anything = 1.0
  assert isinstance(base.loss.terms, config_dict.ConfigDict)
  assert not config.base().loss.terms  # each call makes a new one


def test_find_knows_terms_and_refuses_other_keys():
  assert knobs.find('loss.terms.sigmoid').rule.holds(0.5)
  with pytest.raises(types.InputError, match="did you mean 'loss.beta'"):
    knobs.find('loss.betta')


def test_choices_are_those_of_the_code_that_reads_them():
  assert knobs.find('optim.name').rule.choices == tuple(optim.OPTIMIZERS)
  assert knobs.find('optim.schedule').rule.choices == tuple(optim.SCHEDULES)
  assert knobs.find('data.layout').rule.choices == rows.LAYOUTS
  assert set(vars(knobs.root().mesh)) == set(types.MESH_AXES)


@pytest.mark.parametrize(
  'read,registered',
  [
    (knobs.optimizers(), optim.OPTIMIZERS),
    (knobs.schedules(), optim.SCHEDULES),
  ],
)
def test_keywords_are_read_as_python_reads_them(read, registered):
  assert list(read) == list(registered)
  for name, function in registered.items():
    parameters = inspect.signature(function).parameters.values()
    assert read[name] == {
      p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY
    }


def test_a_base_imports_no_jax():
  code = 'import sys; from dpo_jax import config; config.base(); '
  code += "config.help_text('optim'); sys.exit('jax' in sys.modules)"
  assert (
    subprocess.run([sys.executable, '-c', code], check=False).returncode == 0
  )
