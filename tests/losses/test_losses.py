"""Losses: properties over the registry, and one golden row each."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax import losses
from dpo_jax.types import Comparisons, CompletionScores, InputError

LN2 = np.log(2.0)


def pairs(a_w, a_l, *, tokens=(3.0, 5.0), policy=(-7.0, -11.0)):
  """Comparisons with the given log-ratios (arrays [P])."""
  a_w, a_l = jnp.atleast_1d(a_w), jnp.atleast_1d(a_l)
  ones = jnp.ones_like(a_w)
  return losses.PairScores(
    policy_chosen=policy[0] * ones,
    policy_rejected=policy[1] * ones,
    reference_chosen=policy[0] - a_w,
    reference_rejected=policy[1] - a_l,
    chosen_tokens=tokens[0] * ones,
    rejected_tokens=tokens[1] * ones,
    weight=ones,
    margin=0.5 * ones,
    score_chosen=2.0 * ones,
    score_rejected=1.0 * ones,
  )


# (loss, keywords, a_w, a_l, expected); numbers by hand, sources beside.
GOLDEN = [
  # -log s(.1 * 3) = log(1 + e^-.3)
  ('sigmoid', {}, 2.0, -1.0, np.log1p(np.exp(-0.3))),
  # cdpo.pdf: -.8 log s(.3) - .2 log s(-.3)
  (
    'sigmoid',
    {'label_smoothing': 0.2},
    2.0,
    -1.0,
    0.8 * np.log1p(np.exp(-0.3)) + 0.2 * np.log1p(np.exp(0.3)),
  ),
  # (2/3 + 1/5 - 5)^2, eq. 17 with means over 3 and 5 tokens
  ('ipo', {}, 2.0, -1.0, (2 / 3 + 1 / 5 - 5) ** 2),
  # (3 - 5)^2, eq. 17 as printed
  ('ipo', {'reduction': 'sum'}, 2.0, -1.0, 4.0),
  # the chosen answer's log-probability is -7
  ('nll', {}, 2.0, -1.0, 7.0),
]


@pytest.mark.parametrize('name,keywords,a_w,a_l,expected', GOLDEN)
def test_golden_row(name, keywords, a_w, a_l, expected):
  value = losses.get(name).fn(pairs(a_w, a_l), **keywords)
  np.testing.assert_allclose(value, [expected], rtol=2e-6)


def test_every_loss_has_a_golden_row():
  assert {row[0] for row in GOLDEN} >= set(losses.names())


@pytest.mark.parametrize('smoothing', [0.0, 0.1, 0.4])
def test_sigmoid_at_step_0_is_ln2_and_its_gradient_is_closed_form(smoothing):
  fn = losses.get('sigmoid').fn

  def value(gap):
    return fn(pairs(gap, 0.0), beta=1.0, label_smoothing=smoothing)[0]

  np.testing.assert_allclose(value(0.0), LN2, rtol=1e-6)
  for gap in (-2.0, 0.3, 5.0):
    # d/dD = -(1-e) s(-D) + e s(D)
    expected = -(1 - smoothing) / (1 + np.exp(gap)) + smoothing / (
      1 + np.exp(-gap)
    )
    np.testing.assert_allclose(jax.grad(value)(gap), expected, rtol=1e-5)
  if smoothing:
    optimum = np.log((1 - smoothing) / smoothing)  # s(D) = 1 - e
    assert abs(jax.grad(value)(optimum)) < 1e-6


@pytest.mark.parametrize('name', losses.names())
class TestEveryLoss:
  def test_gradient_prefers_the_winner(self, name):
    fn = losses.get(name).fn
    base = pairs(0.1, 0.1)

    def total(policy_chosen, policy_rejected):
      moved = base._replace(
        policy_chosen=policy_chosen, policy_rejected=policy_rejected
      )
      return jnp.sum(fn(moved))

    g_w, g_l = jax.grad(total, (0, 1))(base.policy_chosen, base.policy_rejected)
    assert (g_w <= 0).all() and (g_l >= 0).all()
    assert (g_w - g_l < 0).all()

  def test_finite_at_extremes(self, name):
    fn = losses.get(name).fn
    for gap in (-1e4, 1e4):
      for tokens in ((1.0, 4096.0), (4096.0, 1.0)):
        args = pairs(gap, -gap, tokens=tokens, policy=(-1e4, -2e4))
        value, grad = jax.value_and_grad(
          lambda x, args=args: jnp.sum(fn(args._replace(policy_chosen=x)))
        )(args.policy_chosen)
        assert np.isfinite(value) and np.isfinite(grad).all()

  def test_comparisons_do_not_influence_each_other(self, name):
    if 'whole_batch' in losses.get(name).needs:
      return
    fn = losses.get(name).fn
    rng = np.random.default_rng(0)
    a_w, a_l = rng.normal(size=(2, 6)) * 3
    together = fn(pairs(a_w, a_l))
    alone = [fn(pairs(w, x))[0] for w, x in zip(a_w, a_l)]
    np.testing.assert_allclose(together, alone, rtol=1e-6)

  def test_no_dead_knobs(self, name):
    loss = losses.get(name)
    base = loss.fn(pairs(2.0, -1.0))
    for key, default in loss.hyper.items():
      moved = loss.fn(pairs(2.0, -1.0), **{key: default + 0.07})
      assert not np.allclose(base, moved), key
    for key, choices in loss.static.items():
      values = [loss.fn(pairs(2.0, -1.0), **{key: c}) for c in choices]
      assert not np.allclose(values[0], values[1]), key

  def test_hyper_parameters_are_traced(self, name):
    loss = losses.get(name)
    fn = jax.jit(lambda hyper: loss.fn(pairs(2.0, -1.0), **hyper))
    for scale in (1.0, 1.1, 1.2):
      fn({k: v * scale for k, v in loss.hyper.items()})
    assert fn._cache_size() == 1

  def test_registry_entry_is_complete(self, name):
    loss = losses.get(name)
    assert loss.label and loss.paper and loss.formula and loss.fn.__doc__
    assert set(loss.grid) <= set(loss.hyper)


def scores(logps, num_tokens):
  return CompletionScores(
    jnp.asarray(logps, jnp.float32), jnp.asarray(num_tokens, jnp.float32)
  )


class _Batch:
  comparisons = Comparisons(
    winner=jnp.array([0, 2, 0]),
    loser=jnp.array([1, 3, 0]),
    weight=jnp.array([1.0, 3.0, 0.0]),
    margin=jnp.zeros(3),
  )
  scores = jnp.zeros(4)


def test_objective_weights_mixes_and_ignores_padding():
  policy = scores([-4.0, -6.0, -10.0, -8.0], [2, 3, 5, 4])
  reference = scores([-5.0, -5.0, -9.0, -9.0], [2, 3, 5, 4])
  terms = {'sigmoid': 1.0, 'nll': 0.5}
  objective = losses.make_objective(tuple(terms))
  loss, values = objective(
    policy, reference, _Batch, losses.default_hyper(terms, beta=0.5)
  )
  # Gaps: (1) - (-1) = 2 and (-1) - (1) = -2; D = +-1; weights 1 and 3.
  sigmoid = (np.log1p(np.exp(-1)) + 3 * np.log1p(np.exp(1))) / 4
  nll = (4 + 3 * 10) / (2 + 3 * 5)  # nats a chosen token
  np.testing.assert_allclose(values['sigmoid'], sigmoid, rtol=1e-6)
  np.testing.assert_allclose(values['nll'], nll, rtol=1e-6)
  np.testing.assert_allclose(loss, sigmoid + 0.5 * nll, rtol=1e-6)


def test_unknown_loss_and_unused_hyper_are_refused():
  with pytest.raises(InputError, match="did you mean 'sigmoid'"):
    losses.make_objective(('sigmoyd',))
  with pytest.raises(InputError, match='label_smoothing: not used by ipo'):
    losses.default_hyper({'ipo': 1.0}, label_smoothing=0.1)
