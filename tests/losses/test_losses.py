"""Losses: properties over the registry, and one golden row each."""

import harness
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax import losses
from dpo_jax.types import InputError

LN2 = np.log(2.0)


def s(x):
  return 1 / (1 + np.exp(-x))


def nls(x):
  """-log s(x)."""
  return np.log1p(np.exp(-x))


def log_odds(mean_logp):
  return mean_logp - np.log1p(-np.exp(mean_logp))


# One comparison with a_w = 2, a_l = -1: h = 3; log pi -7 and -11 over 3 and 5
# tokens; scores 4 and 2.5; margin .5; mismatched log-ratio .5; K .3 and .8.
# (loss, keywords, expected); numbers by hand, formula and source beside.
GOLDEN = [
  # -log s(.1 * 3)
  ('sigmoid', {}, nls(0.3)),
  # cdpo.pdf: -.8 log s(.3) - .2 log s(-.3)
  ('sigmoid', {'label_smoothing': 0.2}, 0.8 * nls(0.3) + 0.2 * nls(-0.3)),
  # arXiv:2403.00409: (.8 nls(.3) - .2 nls(-.3)) / .6
  (
    'robust',
    {'label_smoothing': 0.2},
    (0.8 * nls(0.3) - 0.2 * nls(-0.3)) / 0.6,
  ),
  # (2/3 + 1/5 - 5)^2, eq. 17 with means over 3 and 5 tokens
  ('ipo', {}, (2 / 3 + 1 / 5 - 5) ** 2),
  # (3 - 5)^2, eq. 17 as printed
  ('ipo', {'reduction': 'sum'}, 4.0),
  # max(0, 1 - .3)
  ('hinge', {}, 0.7),
  # max(0, 6 + 7 - 11) + .1 * 7/3
  ('slic_hf', {'delta': 6.0}, 2 + 0.7 / 3),
  # eq. 16: KL of (s(.3), s(-.3)) from (.8, .2)
  (
    'exo_pair',
    {'label_smoothing': 0.2},
    s(0.3) * np.log(s(0.3) / 0.8) + s(-0.3) * np.log(s(-0.3) / 0.2),
  ),
  # rewards .2 and -.1
  ('nca_pair', {}, nls(0.2) + 0.5 * nls(-0.2) + 0.5 * nls(0.1)),
  ('bco_pair', {}, nls(0.2) + nls(0.1)),
  # scores 4 and 2.5 at temperature 1.5: target s(1); rewards as in sigmoid
  ('infonca', {'alpha': 1.5}, s(1) * nls(0.3) + s(-1) * nls(-0.3)),
  # first step: d = (.2 - .1) / 2 = .05
  ('bco', {}, 2 * nls(0.15)),
  # (2 - 5)^2 + (-1 + 5)^2
  ('sppo_hard', {}, 25.0),
  # one comparison: sorting changes nothing
  ('aot', {'label_smoothing': 0.2}, 0.8 * nls(0.3) + 0.2 * nls(-0.3)),
  ('aot_unpaired', {}, nls(0.3)),
  # eqs. 7 and 8
  ('apo_zero', {}, 1 - s(0.2) + s(-0.1)),
  ('apo_down', {}, s(0.2) + 1 - s(0.3)),
  # eq. 5 with m = s(.3 / .05)
  ('discopop', {}, nls(0.3) * s(-6) + np.exp(-0.3) * s(6)),
  # eq. 6: 5 (2/3 + 1/5)
  ('sigmoid_norm', {}, nls(5 * (2 / 3 + 1 / 5))),
  # the chosen answer's 7 nats over its 3 tokens
  ('nll', {}, 7 / 3),
  ('sft', {}, 7 / 3),
  # eq. 6: 2 (-7/3 + 11/5) - 1
  ('simpo', {}, nls(2 * (-7 / 3 + 11 / 5) - 1)),
  # r = (1 - p^-.25) / .25 with mean log p -7/3 and -11/5
  (
    'alphapo',
    {},
    nls(2.5 * 4 * (np.exp(11 / 20) - np.exp(7 / 12)) - 0.25),
  ),
  # .1 (-7 + 11), and one NLL
  ('cpo', {}, nls(0.4) + 7 / 3),
  # eqs. 6 and 7
  ('orpo', {}, 7 / 3 + 0.1 * nls(log_odds(-7 / 3) - log_odds(-11 / 5))),
  # a_w = 2 lost nothing: the sigmoid with beta .3
  ('dpop', {}, nls(0.9)),
  # .3 + .01 (3 - 5)
  ('rdpo', {}, nls(0.28)),
  # .3 - log 1.5
  ('odpo', {}, nls(0.3 - np.log(1.5))),
  ('margin', {}, nls(0.3 - 0.5)),
  # -log s(3) + ((2 - 5)^2 + (-1 + 5)^2) / 2
  ('cal_dpo', {}, nls(3) + 12.5),
  # z = .05, two completions: (1.5 (1 - s(.15)) + 1 - s(.05 + .1)) / 2
  ('kto', {'desirable_weight': 1.5}, 2.5 * s(-0.15) / 2),
  # .1 (3 - (.8 - .3))
  ('tdpo1', {}, nls(0.25)),
  # .1 (3 - .5 (.8 - .3))
  ('tdpo2', {}, nls(0.275)),
  # KL of s(1.5) from s(.3), KL of s(.3) from s(1.5), squared
  (
    'reward_aware_rpo',
    {},
    s(1.5) * np.log(s(1.5) / s(0.3)) + s(-1.5) * np.log(s(-1.5) / s(-0.3)),
  ),
  (
    'reward_aware_rpo',
    {'distance': 'forward_kl'},
    s(0.3) * np.log(s(0.3) / s(1.5)) + s(-0.3) * np.log(s(-0.3) / s(-1.5)),
  ),
  ('reward_aware_rpo', {'distance': 'squared'}, (0.3 - 1.5) ** 2),
  # simpo: one comparison has no deviation from its mean
  ('alpha_dpo', {}, nls(2.5 * (-7 / 3 + 11 / 5) - 1.5)),
  ('amapo', {}, nls(2 * (-7 / 3 + 11 / 5))),
  # eq. 11, q = 1 and 1/4; beta log Z = beta log beta + 1; two completions
  (
    'qrpo',
    {'beta': 0.2},
    ((0.2 * np.log(5) - 0.4) ** 2 + (-0.75 + 0.2 * np.log(5) + 0.2) ** 2) / 2,
  ),
  # d = 1: the first beta over 1.01, times 3
  ('epsilon_dpo', {}, nls(0.03 / 1.01)),
  # s(.7 (4 - 2.5)) s(.8 - 2 (-7/3 + 11/5))^3 nls(2 (2/3 + 1/5))
  ('uni_dpo', {}, s(1.05) * s(0.8 + 4 / 15) ** 3 * nls(26 / 15)),
  # D = .3: arXiv:2402.05749 and arXiv:2505.24709
  ('exponential', {}, np.exp(-0.3)),
  ('truncated_quadratic', {}, 0.49),
  ('savage', {}, s(-0.3) ** 2),
  ('sympo', {}, s(-0.3)),
  ('sympo', {'shape': 'ramp'}, 0.35),
  # .1 (2 + .95)
  ('dpo_shift', {}, nls(0.295)),
  # one over both perplexities
  ('simper', {}, np.exp(-11 / 5) - np.exp(-7 / 3)),
  # two answers: the sigmoid loss
  ('softmax', {}, nls(0.3)),
  ('plackett_luce', {}, nls(0.3)),
  # the chosen answer's NLL, and both log odds
  ('asft', {}, 7 / 3 + nls(log_odds(-7 / 3)) + nls(-log_odds(-11 / 5))),
  # the undesirable answer has a log-ratio of -1, 11 nats over 5 tokens
  ('npo', {}, 20 * nls(0.1)),
  ('simnpo', {}, 0.8 * nls(2.5 * 11 / 5)),
]


ONE = (1, 0, 0, 0)  # weights: the other comparisons are padding


def value(name, keywords, data=None, *, a_w=2.0, a_l=-1.0, **given):
  batch = harness.batch_of(weight=ONE, **(data or {}))
  scores = harness.scores_of(a_w, a_l, **given)
  return harness.evaluate(name, scores, batch, **keywords)[0]


@pytest.mark.parametrize('name,keywords,expected', GOLDEN)
def test_golden_row(name, keywords, expected):
  np.testing.assert_allclose(value(name, keywords), expected, rtol=3e-6)


def test_every_loss_has_a_golden_row():
  assert {row[0] for row in GOLDEN} == set(losses.names())


# Values where policy and reference agree, from the docstrings: (loss, keywords,
# value).
AT_STEP_0 = [
  ('sigmoid', {'label_smoothing': 0.3}, LN2),
  ('robust', {'label_smoothing': 0.3}, LN2),
  ('ipo', {}, 25.0),
  ('ipo', {'reduction': 'sum'}, 25.0),
  ('hinge', {}, 1.0),
  ('apo_zero', {}, 1.0),
  ('apo_down', {}, 1.0),
  ('discopop', {}, LN2 / 2 + 1 / 2),
  ('sigmoid_norm', {}, LN2),
  ('infonca', {}, LN2),
  ('bco_pair', {}, 2 * LN2),
  ('bco', {}, 2 * LN2),
  ('aot', {}, LN2),
  ('exponential', {}, 1.0),
  ('truncated_quadratic', {}, 1.0),
  ('savage', {}, 0.25),
  ('sympo', {}, 0.5),
  ('dpo_shift', {}, LN2),
  ('npo', {}, 20 * LN2),
]
# Two losses with one value: (loss, keywords, loss, keywords, batch, given).
SAME = [
  # A weight, margin or penalty of zero is the sigmoid loss.
  ('dpop', {'penalty': 0.0}, 'sigmoid', {'beta': 0.3}, {}, {'a_w': -2.0}),
  ('margin', {}, 'sigmoid', {}, {'margin': 0.0}, {}),
  ('odpo', {}, 'sigmoid', {}, {'scores': (3.0, 2.0)}, {}),
  ('rdpo', {}, 'sigmoid', {}, {}, {'tokens': (4.0, 4.0)}),
  ('tdpo1', {}, 'sigmoid', {}, {}, {'kl': (0.7, 0.7)}),
  ('tdpo2', {'alpha': 0.0}, 'sigmoid', {}, {}, {}),
  ('alphapo', {'alpha': 0.0}, 'simpo', {'beta': 2.5, 'gamma': 0.25}, {}, {}),
  ('alphapo', {'alpha': 1e-5}, 'alphapo', {'alpha': 0.0}, {}, {}),
  # Equal lengths n make sigmoid_norm the sigmoid loss of beta / n.
  ('sigmoid_norm', {}, 'sigmoid', {'beta': 1.25}, {}, {'tokens': (4.0, 4.0)}),
  # Scores far apart are one-hot.
  ('infonca', {'alpha': 0.01}, 'sigmoid', {}, {}, {}),
  ('sft', {}, 'nll', {}, {}, {}),
  ('epsilon_dpo', {'epsilon': 0.0}, 'sigmoid', {'beta': 0.01}, {}, {}),
  ('dpo_shift', {'rejected_weight': 1.0}, 'sigmoid', {}, {}, {}),
  ('softmax', {}, 'sigmoid', {}, {}, {}),
  ('plackett_luce', {}, 'sigmoid', {}, {}, {}),
]


@pytest.mark.parametrize('name,keywords,expected', AT_STEP_0)
def test_value_at_step_0(name, keywords, expected):
  got = value(name, keywords, a_w=0.0, a_l=0.0, mismatched=0.0)
  np.testing.assert_allclose(got, expected, rtol=1e-6)


@pytest.mark.parametrize('name,keywords,other,others,data,given', SAME)
def test_identities(name, keywords, other, others, data, given):
  first = value(name, keywords, data, **given)
  second = value(other, others, data, **given)
  np.testing.assert_allclose(first, second, rtol=2e-5)


@pytest.mark.parametrize('name,share', [('tdpo1', 1.0), ('tdpo2', 0.0)])
def test_the_winner_s_kl_has_a_gradient_in_tdpo1_alone(name, share):
  scores = harness.scores_of(2.0, -1.0)
  _, policy, _ = harness.evaluate(name, scores, harness.batch_of(weight=ONE))
  margin = {'tdpo1': 0.25, 'tdpo2': 0.275}[name]  # as in GOLDEN
  # d/dK_w of -log s(beta (h + K_w - ...)), that of K_l times alpha.
  for_w = -0.1 * s(-margin) * share
  for_l = 0.1 * s(-margin) * {'tdpo1': 1.0, 'tdpo2': 0.5}[name]
  np.testing.assert_allclose(policy.kl[:2], [for_w, for_l], rtol=1e-5)


@pytest.mark.parametrize('policy', [(0, 0), (-1e-9, -3), (-3, 0), (-1e-3, -2)])
def test_orpo_is_finite_as_an_answer_becomes_certain(policy):
  scores = harness.scores_of(0.0, 0.0, policy=policy, tokens=(1.0, 1.0))
  outputs = harness.evaluate('orpo', scores)
  for leaf in jax.tree.leaves(outputs):
    assert np.isfinite(leaf).all()
  if policy == (-1e-3, -2):
    expected = 1e-3 + 0.1 * nls(log_odds(-1e-3) - log_odds(-2))
    np.testing.assert_allclose(outputs[0], expected, rtol=1e-5)


@pytest.mark.parametrize('name', losses.names())
class TestEveryLoss:
  def test_gradients(self, name):
    loss, num = losses.get(name), harness.NUM
    a_w, a_l = np.full(num, 1.0), np.full(num, -1.0)
    w, x = np.full(num, -7.0), np.full(num, -7.5)
    scores = harness.scores_of(a_w, a_l, policy=(w, x))
    _, policy, hyper = harness.evaluate(name, scores)
    for_w, for_l, for_mismatched = policy.logps.reshape(num, 3).T
    # The gradient prefers the winner (apo_down lets both go down).
    assert (for_w - for_l < -1e-6).all() and (for_l >= 0).all()
    assert (for_w <= 0).all() or name == 'apo_down'
    # KTO's baseline, a stop-gradient.
    np.testing.assert_array_equal(for_mismatched, 0)
    # No comparison influences another's gradient: the last one changes.
    a_w[-1], a_l[-1], w[-1], x[-1] = -3.0, 4.0, -9.0, -6.0
    scores = harness.scores_of(a_w, a_l, policy=(w, x))
    _, moved, moved_hyper = harness.evaluate(name, scores)
    before, after = policy.logps[:-3], moved.logps[:-3]
    if 'whole_batch' not in loss.needs:
      np.testing.assert_allclose(after, before, rtol=1e-5)
    # Every hyper-parameter changes the value.
    for key in loss.hyper:
      if abs(hyper[key]) < 1e-9 and abs(moved_hyper[key]) < 1e-9:
        # A threshold of the data's scores has no slope: it passes one here.
        first, second = (
          harness.evaluate(name, scores, **{key: number})[0]
          for number in (loss.hyper[key], 4.5)
        )
        assert first != second, key

  def test_finite_at_extremes(self, name):
    high, long = np.array([1e4, 1e4, -1e4, -1e4]), np.array([1, 4096, 1, 4096])
    scores = harness.scores_of(
      high,
      -high,
      tokens=(long, 4097 - long),
      policy=(-1e4, -2e4),
      mismatched=1e4,
    )
    for leaf in jax.tree.leaves(harness.evaluate(name, scores)):
      assert np.isfinite(leaf).all()

  def test_static_choices_differ(self, name):
    # Two comparisons per prompt, with unequal winners.
    batch = harness.batch_of()._replace(
      prompt_index=jnp.repeat(jnp.arange(2), 6)
    )
    likely = np.array([-7.0, -9.0, -8.0, -5.0])
    scores = harness.scores_of(2.0, -1.0, policy=(likely, -11.0))
    for key, choices in losses.get(name).static.items():
      values = {
        float(harness.evaluate(name, scores, batch, **{key: choice})[0])
        for choice in choices
      }
      assert len(values) == len(choices)

  def test_what_it_does_not_use_is_refused(self, name):
    unused = set(losses.hyper_names()) - set(losses.get(name).hyper)
    for key in unused:
      with pytest.raises(InputError, match=f'{key}: not used by {name}'):
        losses.default_hyper({name: 1.0}, **{key: 0.3})

  def test_numbers_out_of_bounds_are_refused(self, name):
    for key, bounds in losses.get(name).bounds.items():
      low, high = (float(text) for text in bounds[1:-1].split(','))
      for outside in (low - 1, high + 1, float('nan')):
        with pytest.raises(InputError, match=f'{key}: .* use a number in'):
          losses.default_hyper({name: 1.0}, **{key: outside})

  def test_registry_entry_is_complete(self, name):
    loss = losses.get(name)
    assert loss.label and loss.paper and loss.formula and loss.fn.__doc__
    assert set(loss.grid) | set(loss.bounds) <= set(loss.hyper)
    losses.default_hyper({name: 1.0}, **loss.hyper)  # within its own bounds
