"""The registry: its table, and its refusals at config time."""

import pathlib
import re

import pytest

from dpo_jax import config, losses
from dpo_jax.losses import rules as loss_rules
from dpo_jax.types import InputError

EXPERIMENTS = pathlib.Path(__file__).resolve().parents[2] / 'experiments'


def test_table_has_a_row_for_every_loss_and_option():
  lines = losses.table().splitlines()
  assert lines[0] == '| name | formula | paper | needs |'
  first = [line.split(' | ')[0].removeprefix('| ') for line in lines[2:]]
  options = [name.split(' (option')[0] for name in first]
  assert options == [*losses.names(), *losses.option_names()]
  # Bars in formulas are escaped: every row has four cells.
  assert all(line.replace('\\|', '').count('|') == 5 for line in lines)


def test_docstrings_give_the_formula_and_its_source():
  registered = [losses.get(name) for name in losses.names()]
  registered += [losses.get_option(name) for name in losses.option_names()]
  for it in registered:
    text = ' '.join(it.fn.__doc__.split())
    before_arguments, source = text.split(' Args:')[0].split('Source: ')
    assert '`' in before_arguments, it.name
    # The paper, and the equation where its number is known.
    cited = re.findall(
      r'arXiv:[\d.]+\d|eqs?\. [\d and]*\d|section [\d.]+\d', it.paper
    )
    assert all(words in source for words in cited), it.name


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


def load(*overrides):
  pairs = [('loss.terms.sigmoid', '0'), *(o.split('=') for o in overrides)]
  loaded = config.load(f'{EXPERIMENTS}/quickstart.py:stage=dpo,runlocal', pairs)
  config.validate(loaded)
  return loaded


# What config.validate says, before any device: (overrides, words).
REFUSED = [
  (
    ['loss.terms.bco_pair=1', 'loss.f_divergence=js_divergence'],
    "config.loss.f_divergence: 'js_divergence' is not allowed with bco_pair",
  ),
  (
    ['loss.terms.simpo=1', 'loss.ld_alpha=0.5'],
    '0.5 is not allowed with simpo',
  ),
  (['loss.terms.aot=1', 'loss.wpo=True'], 'True is not allowed with aot'),
  (['loss.terms.ipo=1', 'loss.f_alpha=0.3'], 'or use f_divergence'),
  (
    ['loss.terms.ipo=1', 'loss.f_divergence=forward_kl', 'loss.f_alpha=0.3'],
    'counts only with f_divergence=alpha_divergence',
  ),
  (['loss.terms.ipo=1', 'loss.beta_dpo_a=0.3'], 'or use beta_dpo'),
  (['loss.terms.exo_pair=1', 'loss.label_smoothing=0'], 'in (0, 0.5)'),
  (['loss.terms.ipo=1', 'loss.label_smoothing=0.1'], 'used by no chosen loss'),
  (
    ['loss.terms.tdpo1=1', 'reference.mode=cache'],
    "'cache' is not allowed with tdpo1, which reads whole distributions",
  ),
  (
    ['loss.terms.kto=1', 'reference.mode=cache'],
    'whose mismatched answers change with every batch',
  ),
  (
    ['loss.terms.ipo=1', 'loss.ld_alpha=0.5', 'reference.mode=cache'],
    "'cache' is not allowed with ld_alpha",
  ),
  (
    ['loss.terms.ipo=1', 'loss.tr_dpo=True', 'reference.mode=cache'],
    "changes the reference's weights",
  ),
  (
    ['loss.terms.ipo=1', 'loss.terms.simpo=1', 'loss.beta=None'],
    'ipo has 0.1 by default and simpo 2',
  ),
]


@pytest.mark.parametrize('overrides,words', REFUSED)
def test_config_refuses(overrides, words):
  with pytest.raises(InputError) as error:
    load(*overrides)
  assert words in str(error.value)
  assert '; fix: ' in str(error.value)


def test_options_are_on_where_their_key_is_set():
  loaded = load(
    'loss.terms.ipo=1',
    'loss.wpo=True',
    'loss.beta_dpo=False',
    'loss.ld_alpha=0.5',
    'loss.f_divergence=js_divergence',
  )
  assert set(config.loss_options(loaded)) == {'wpo', 'ld_alpha', 'f_divergence'}
  objective = losses.make_objective(
    tuple(config.loss_terms(loaded)),
    config.loss_static(loaded),
    config.loss_options(loaded),
  )
  assert objective.needs == {'reference', 'heads', 'sum_sq_probs'}


@pytest.mark.parametrize(
  'name,columns,missing',
  [
    ('sigmoid', ('labels',), 'comparisons'),
    ('kto', ('scores',), 'comparisons or labels'),
    ('kto', ('labels',), ''),
    ('bco', ('comparisons',), ''),
    ('odpo', ('comparisons',), 'scores'),
    ('margin', ('comparisons', 'scores'), 'margin'),
    ('infonca', ('scores',), 'lists'),
    ('infonca', ('scores', 'lists'), ''),
  ],
)
def test_data_that_lacks_something_is_refused(name, columns, missing):
  chosen = {name: losses.get(name)}
  if not missing:
    loss_rules.check_data(chosen, columns)
    return
  with pytest.raises(
    InputError, match=f'{name}: needs {missing}, which config.data.eval has not'
  ):
    loss_rules.check_data(chosen, columns, 'config.data.eval')
