"""registry: every entry is complete, and nonsense is refused."""

import re

import pytest

from dpo_jax import losses
from dpo_jax.types import InputError


def test_docstrings_give_the_formula_and_its_source():
  registered = [losses.get(name) for name in losses.names()]
  registered += [losses.get_option(name) for name in losses.option_names()]
  for entry in registered:
    text = ' '.join(entry.fn.__doc__.split())
    before_arguments, source = text.split(' Args:')[0].split('Source: ')
    assert '`' in before_arguments, entry.name
    # The paper, and the equation where its number is known.
    cited = re.findall(
      r'arXiv:[\d.]+\d|eqs?\. [\d and]*\d|section [\d.]+\d', entry.paper
    )
    assert all(words in source for words in cited), entry.name


def test_registration_is_checked():
  texts = {'label': '', 'paper': '', 'formula': ''}

  def some_loss(pairs):
    return pairs

  for bad in (
    {'needs': ('a_crystal_ball',)},
    {'kind': 'strange'},
    {'view': 'comparisons', 'normaliser': 'lists'},
    {'reward': 'none_of_these'},
    {'state': {'mean': 0.0}},  # without needs=('state', 'whole_batch')
  ):
    with pytest.raises(ValueError, match='some_loss'):
      losses.register(**texts, **bad)(some_loss)
  assert 'some_loss' not in losses.names()


def test_a_signature_is_checked():
  texts = {'label': '', 'paper': '', 'formula': ''}

  def without_default(pairs, *, beta: float):
    return pairs

  def neither_float_nor_choice(pairs, *, beta: int = 1):
    return pairs

  for fn, words in (
    (without_default, 'beta has no default'),
    (neither_float_nor_choice, 'beta has neither'),
  ):
    with pytest.raises(ValueError, match=f'{fn.__name__}: {words}'):
      losses.register(**texts)(fn)
  with pytest.raises(TypeError, match='lable'):
    losses.register(**texts, lable='')(lambda pairs: pairs)
  assert not {'without_default', 'neither_float_nor_choice'} & set(
    losses.names()
  )


def test_a_name_is_registered_once():
  # Under a name that another module has; the registered loss stays.
  def hinge(pairs):
    return pairs

  registered = losses.get('hinge')
  with pytest.raises(ValueError, match='hinge: registered twice'):
    losses.register(label='', paper='', formula='')(hinge)
  assert losses.get('hinge') is registered


def test_unknown_names_are_refused_with_the_nearest():
  with pytest.raises(InputError, match="sigmoyd: .* did you mean 'sigmoid'"):
    losses.get('sigmoyd')
  with pytest.raises(InputError, match="wpp: .* did you mean 'wpo'"):
    losses.get_option('wpp')
