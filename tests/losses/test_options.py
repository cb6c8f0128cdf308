"""options: numbers by hand, accepted kinds of losses, refusals."""

import harness
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax import losses
from dpo_jax.losses import options
from dpo_jax.types import InputError

ONE = (1, 0, 0, 0)  # weights: the other comparisons are padding


def nls(x):
  """-log s(x)."""
  return np.log1p(np.exp(-x))


def value(name, used, *, a_w=2.0, a_l=-1.0, weight=ONE, **keywords):
  scores = harness.scores_of(a_w, a_l)
  batch = harness.batch_of(weight=weight)
  return harness.evaluate(name, scores, batch, used, **keywords)[0]


# One comparison with a_w = 2, a_l = -1, log pi -7 and -11 over 3 and 5 tokens;
# of the loser's log-ratio half is its tail. (loss, option, keywords, expected)
GOLDEN = [
  # a_l -> -.5 + .4 (-.5)
  ('sigmoid', 'ld_alpha', {'ld_alpha': 0.4}, nls(0.1 * (2 + 0.7))),
  # eq. 17 of IPO with that loser; lengths stay 3 and 5
  ('ipo', 'ld_alpha', {'ld_alpha': 0.4}, (2 / 3 + 0.7 / 5 - 5) ** 2),
  # a -> 1 - e^-a
  (
    'sigmoid',
    'f_divergence',
    {'f_divergence': 'forward_kl'},
    nls(0.1 * (np.e - np.exp(-2))),
  ),
  # a -> log 2 + log s(a)
  (
    'sigmoid',
    'f_divergence',
    {'f_divergence': 'js_divergence'},
    nls(0.1 * (nls(-1) - nls(2))),
  ),
  # a -> a e^-a
  (
    'sigmoid',
    'f_divergence',
    {'f_divergence': 'squared'},
    nls(0.1 * (2 * np.exp(-2) + np.e)),
  ),
  # a -> (e^(a/2) - 1) / (1/2)
  (
    'sigmoid',
    'f_divergence',
    {'f_divergence': 'alpha_divergence', 'f_alpha': 1.5},
    nls(0.1 * 2 * (np.e - np.exp(-0.5))),
  ),
  # eq. 2: exp((-7 + 2)/3 + (-11 + 4)/5)
  ('sigmoid', 'wpo', {}, np.exp(-5 / 3 - 7 / 5) * nls(0.3)),
  # -2 log exp(-L / 2) of one comparison
  ('sigmoid', 'dr_dpo', {'dr_beta': 2.0}, nls(0.3)),
  # First batch, h = 3: EMA .1 * 3; beta .1 (1 + .6 (3 - .3))
  ('sigmoid', 'beta_dpo', {}, nls(0.1 * (1 + 0.6 * 2.7) * 3)),
]


@pytest.mark.parametrize('name,option,keywords,expected', GOLDEN)
def test_golden_row(name, option, keywords, expected):
  got = value(name, (option,), **keywords)
  np.testing.assert_allclose(got, expected, rtol=3e-6)


def test_every_option_of_losses_has_a_golden_row():
  assert {row[1] for row in GOLDEN} | {'tr_dpo'} == set(losses.option_names())


@pytest.mark.parametrize(
  'option,keywords',
  [
    ('ld_alpha', {'ld_alpha': 1.0}),
    ('f_divergence', {'f_divergence': 'reverse_kl'}),
    ('f_divergence', {'f_divergence': 'alpha_divergence', 'f_alpha': 1.0}),
    ('beta_dpo', {'beta_dpo_a': 0.0, 'beta_dpo_rho': 0.0}),
    (
      'beta_dpo',
      {
        'beta_dpo_a': 0.0,
        'beta_dpo_rho': 0.0,
        'beta_dpo_per': 'comparison',
      },
    ),
  ],
)
def test_what_changes_nothing(option, keywords):
  weight = (1, 1, 0.5, 0)
  kwargs = {'a_w': np.array([2.0, -1.0, 0.5, 3.0]), 'weight': weight}
  got = value('sigmoid', (option,), **kwargs, **keywords)
  np.testing.assert_allclose(got, value('sigmoid', (), **kwargs), rtol=1e-6)


def test_alpha_divergence_meets_the_reverse_kl():
  near = value(
    'sigmoid',
    ('f_divergence',),
    f_divergence='alpha_divergence',
    f_alpha=1 - 1e-4,
  )
  np.testing.assert_allclose(near, value('sigmoid', ()), rtol=1e-4)


def test_wpo_weights_have_no_gradient():
  scores = harness.scores_of(2.0, -1.0)
  plain = harness.evaluate('ipo', scores)[1].logps
  weighted = harness.evaluate('ipo', scores, None, ('wpo',))[1].logps
  expected = plain * np.exp(-5 / 3 - 7 / 5)
  np.testing.assert_allclose(weighted, expected, rtol=1e-5)


def test_options_compose():
  # ld_alpha changes what f_divergence reads, and wpo's weight sees neither.
  got = value(
    'sigmoid',
    ('wpo', 'f_divergence', 'ld_alpha'),
    f_divergence='js_divergence',
    ld_alpha=0.4,
  )
  margin = 0.1 * (nls(-0.7) - nls(2))
  expected = np.exp(-5 / 3 - 7 / 5) * nls(margin)
  np.testing.assert_allclose(got, expected, rtol=3e-6)


TAKES = {
  'ld_alpha': ['sigmoid', 'sppo_hard', 'aot'],
  'f_divergence': ['sigmoid'],
  'wpo': ['sigmoid', 'dpop', 'simpo'],
  'beta_dpo': ['robust'],
  'dr_dpo': ['sigmoid', 'sppo_hard', 'cpo'],
}


@pytest.mark.parametrize('option', TAKES)
def test_options_are_finite_and_alive(option):
  num = harness.NUM
  high, long = np.array([1e4, 1e4, -1e4, -1e4]), np.array([1, 4096, 1, 4096])
  extreme = harness.scores_of(
    high, -high, tokens=(long, 4097 - long), policy=(-1e4, -2e4)
  )
  ordinary = harness.scores_of(np.arange(num) - 1.5, np.arange(num)[::-1] * 0.4)
  static = (
    {'f_divergence': 'alpha_divergence'} if option == 'f_divergence' else {}
  )
  for name in TAKES[option]:
    outputs = harness.evaluate(name, extreme, None, (option,), **static)
    for leaf in jax.tree.leaves(outputs):
      assert np.isfinite(leaf).all(), name
  for key, default in losses.get_option(option).hyper.items():
    if key in ('beta_dpo_rho', 'beta_dpo_momentum'):
      continue  # tests below
    first, second = (
      harness.evaluate(
        TAKES[option][0], ordinary, None, (option,), **static, **{key: number}
      )[0]
      for number in (default, 0.9 * default - 0.03)
    )
    assert first != second, key


@pytest.mark.parametrize('option', losses.option_names())
@pytest.mark.parametrize('name', losses.names())
def test_every_other_combination_is_refused(option, name):
  loss, spec = losses.get(name), losses.get_option(option)
  if option == 'tr_dpo':
    takes = 'reference' in loss.needs
  else:
    takes = loss.kind in spec.accepts
  if takes:
    losses.make_objective((name,), options=(option,))
    losses.make_objective((name, 'nll'), options=(option,))
    return
  with pytest.raises(
    InputError, match=f'{option}: True is not allowed with {name}'
  ):
    losses.make_objective((name,), options=(option,))


@pytest.mark.parametrize(
  'option,name',
  [
    ('f_divergence', 'bco_pair'),
    ('f_divergence', 'aot'),
    ('f_divergence', 'simpo'),
    ('ld_alpha', 'tdpo1'),
    ('ld_alpha', 'cpo'),
    ('wpo', 'aot'),
    ('wpo', 'kto'),
    ('beta_dpo', 'sppo_hard'),
    ('dr_dpo', 'aot'),
    ('dr_dpo', 'nll'),
    ('beta_dpo', 'infonca'),
    ('tr_dpo', 'orpo'),
  ],
)
def test_refusals_in_plain_sight(option, name):
  with pytest.raises(
    InputError, match=f'{option}: True is not allowed with {name}'
  ):
    losses.make_objective((name,), options=(option,))


def test_a_keyword_that_counts_with_another_choice_is_refused():
  with pytest.raises(InputError, match='only with f_divergence=alpha'):
    losses.default_hyper({'sigmoid': 1}, ('f_divergence',), f_alpha=0.3)


def test_tr_dpo_moves_the_reference_when_due():
  reference, policy = {'w': jnp.array([1.0, 2.0])}, {'w': jnp.array([3.0, 0.0])}
  for step, expected in (
    (0, [1.0, 2.0]),
    (511, [1.0, 2.0]),
    (512, [0.4 + 0.6 * 3, 0.8]),
    (1024, [0.4 + 0.6 * 3, 0.8]),
  ):
    moved = options.tr_dpo(reference, policy, jnp.int32(step))
    np.testing.assert_allclose(moved['w'], expected, rtol=1e-6)
  hard = options.tr_dpo(reference, policy, 3, tr_alpha=1.0, tr_tau=3.0)
  np.testing.assert_array_equal(hard['w'], policy['w'])
