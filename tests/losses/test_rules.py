"""rules: losses and options that the config or the data rule out."""

import pathlib

import pytest

from dpo_jax import config, losses
from dpo_jax.losses import rules
from dpo_jax.types import InputError

EXPERIMENTS = pathlib.Path(__file__).resolve().parents[2] / 'experiments'


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
    ('npo', ('labels',), 'undesirable answers'),
    ('npo', ('labels', 'undesirable answers'), ''),
    ('odpo', ('comparisons',), 'scores'),
    ('margin', ('comparisons', 'scores'), 'margin'),
    ('infonca', ('scores',), 'lists'),
    ('infonca', ('scores', 'lists'), ''),
  ],
)
def test_data_that_lacks_something_is_refused(name, columns, missing):
  chosen = {name: losses.get(name)}
  if not missing:
    rules.check_data(chosen, columns)
    return
  with pytest.raises(
    InputError, match=f'{name}: needs {missing}, which config.data.eval has not'
  ):
    rules.check_data(chosen, columns, 'config.data.eval')


def test_an_unknown_loss_or_option_is_refused_in_one_wording():
  known = ('sigmoid', 'ipo')
  assert str(rules.unknown_loss('sigmoyd', known)) == (
    'config.loss.terms.sigmoyd: there is no such loss; '
    "fix: did you mean 'sigmoid'? losses are sigmoid, ipo"
  )
  assert str(rules.unknown_option('zzz', ('wpo',))) == (
    'config.loss.zzz: there is no such option; fix: options are wpo'
  )


@pytest.mark.parametrize(
  'needs,words',
  [
    ((), ''),
    (('reference', 'whole_batch'), ''),
    (('reference', 'distributions'), 'which reads whole distributions'),
    (('heads',), 'which reads sums over the first tokens'),
    (('mismatched',), 'whose mismatched answers change'),
  ],
)
def test_what_precomputed_scores_cannot_serve(needs, words):
  reason = rules.why_not_cached(frozenset(needs))
  assert reason.startswith(words) and bool(reason) == bool(words)


@pytest.mark.parametrize(
  'value,bounds,inside',
  [
    (0, '[0, 0.5)', True),
    (0.5, '[0, 0.5)', False),
    (0, '(0, inf)', False),
    (1e30, '(0, inf)', True),
    (float('inf'), '(0, inf]', False),
    (float('nan'), '[0, 1]', False),
    (1, '[0, 1]', True),
    (-1e-9, '[0, 1]', False),
  ],
)
def test_within_reads_open_and_closed_ends(value, bounds, inside):
  assert rules.within(value, bounds) == inside


def test_a_moving_reference_needs_a_term_that_reads_one():
  tr_dpo = {'tr_dpo': losses.get_option('tr_dpo')}
  mix = {name: losses.get(name) for name in ('simpo', 'sigmoid')}
  rules.check_options(mix, tr_dpo)  # simpo reads no reference
  with pytest.raises(InputError, match='simpo, which reads no reference'):
    rules.check_options({'simpo': mix['simpo']}, tr_dpo)
