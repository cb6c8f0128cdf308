"""Loss and gradient of one comparison against its reward margin D.

Comes in: the name of a loss or an option. Goes out: curves, from the
objective itself. The scores are those of harness.py, so that whatever a new
loss reads (lists, labels, distributions, its state) is there.

D is the chosen reward minus the rejected one, each half of D away from their
mean. The constants below are the rest of the example. A loss that reads the
whole batch has three more comparisons.
"""

import functools
from typing import NamedTuple

import harness
import jax
import jax.numpy as jnp
import numpy as np

from dpo_jax import losses, metrics
from dpo_jax.losses import records, rules

MARGINS = np.round(np.arange(-40, 41) / 10, 1)  # values of D
OTHERS = (-1.0, 0.0, 1.0)  # D of the other comparisons of a batch
TOKENS = (20.0, 30.0)  # of the chosen and of the rejected answer
LOGP = -50.0  # of an answer under the reference, nats
SCORES = (2.0, 0.0)  # of the data
QUANTILES = (1.0, 0.25)  # of these scores among those of the reference
MARGIN = 0.5  # of the data
KL = (1.0, 3.0)  # sums of KL(reference, policy), nats
STEP = (1.0, -1.0, 0.0, 0.0)  # epsilon-DPO's d of each comparison
NUM_BATCHES = 20  # before the one that is shown, for losses with a state
STEPS = np.arange(0, 2049, 8)  # of a run whose reference moves
# Values that show an option, where its defaults would change nothing or only
# a log-ratio of many nats: for f-divergences D is in nats.
SHOWN = {'ld_alpha': {'ld_alpha': 0.5}, 'f_divergence': {'beta': 1.0}}


class Curve(NamedTuple):
  """One line of a plot; arrays [N], NaN where no probability gives that D."""

  label: str
  margin: np.ndarray  # D
  loss: np.ndarray
  chosen: np.ndarray  # gradient by the chosen answer's reward
  rejected: np.ndarray  # gradient by the rejected answer's reward


def of_loss(name: str) -> list[Curve]:
  """The curves of a loss: one per choice, the default first."""
  loss = losses.get(name)
  choices = [(key, value) for key, v in loss.static.items() for value in v]
  if not choices:
    return [curve(name, name)]
  return [curve(str(value), name, **{key: value}) for key, value in choices]


def of_option(name: str) -> list[Curve]:
  """The curves of a loss without the option, then with it."""
  option, loss = losses.get_option(name), base(name)
  shown = SHOWN.get(name, {})
  known = (*losses.get(loss).hyper, *losses.get(loss).static)
  shown_of_loss = {k: v for k, v in shown.items() if k in known}
  whole = 'whole_batch' in option.needs
  curves = [curve(loss, loss, whole=whole, **shown_of_loss)]
  for label, values in settings(option):
    curves.append(curve(label, loss, (name,), **{**shown, **values}))
  return curves


def base(name: str) -> str:
  """The loss that shows an option: sigmoid, or the first that accepts it."""
  option = losses.get_option(name)
  accepting = [
    n for n in losses.names() if rules.accepts(option, losses.get(n))
  ]
  return 'sigmoid' if 'sigmoid' in accepting else accepting[0]


def settings(option: records.Option) -> list[tuple[str, dict]]:
  """(label, values) of each setting of an option that changes a loss."""
  name = option.name
  if name in option.static:
    return [(choice, {name: choice}) for choice in option.static[name][1:]]
  if name in option.hyper:
    value = SHOWN.get(name, option.hyper)[name]
    return [(f'{name}={value:g}', {name: value})]
  shown = [(name, {})]
  for key, choices in option.static.items():
    shown += [(f'{key}={value}', {key: value}) for value in choices[1:]]
  return shown


def curve(label: str, name: str, options=(), *, whole=False, **values) -> Curve:
  """The curve of a loss with its options, hyper-parameters and choices.

  Args:
    label: of the curve.
    name: of the loss.
    options: names of options.
    whole: whether the batch has other comparisons though nothing reads them.
    **values: hyper-parameters and choices that differ from their defaults.
  """
  loss = losses.get(name)
  hyper = losses.default_hyper({name: 1.0}, options, **values)
  static = {k: v for k, v in values.items() if isinstance(v, (str, bool))}
  objective = losses.make_objective((name,), static, options)
  # Of four comparisons only the first counts, unless the loss reads them all.
  others = float(whole or objective.whole_batch)
  weight = (1.0, *(others,) * len(OTHERS))
  batch = harness.batch_of(
    scores=SCORES, quantiles=QUANTILES, margin=MARGIN, weight=weight
  )

  chosen, rejected = _sides(
    'mean_log_prob' if loss.reward == 'none' else loss.reward,
    divides(loss) and static.get('reduction') != 'sum',
    'reference' in loss.needs,
    tuple((k, float(v)) for k, v in hyper.items() if k in ('beta', 'alpha')),
  )
  num = len(MARGINS)
  start, reference = _scores(
    np.array([0.0, *chosen.nats[num:]]), np.array([0.0, *rejected.nats[num:]])
  )
  directions = _directions()

  def after(policy, state):
    """The state after a batch."""
    return objective.prepare(policy, reference, batch, hyper, state)[1]

  state = objective.init_state()
  if state:
    state = jax.jit(
      lambda state: jax.lax.fori_loop(
        0, NUM_BATCHES, lambda _, state: after(start, state), state
      )
    )(state)

  def loss_of(nats_w, nats_l):
    """The loss if the first comparison has these log-ratios."""
    policy = jax.tree.map(
      lambda x, by_w, by_l: x + nats_w * by_w + nats_l * by_l,
      start,
      *directions,
    )
    new = after(policy, state)
    return objective(policy, reference, batch, hyper, state=new)[0]

  nats_w, nats_l = chosen.nats[:num], rejected.nats[:num]
  with_slopes = _compiled(jax.value_and_grad(loss_of, (0, 1)))
  value, (by_w, by_l) = with_slopes(
    jnp.asarray(nats_w, jnp.float32), jnp.asarray(nats_l, jnp.float32)
  )
  known = np.where(chosen.exists & rejected.exists, 1.0, np.nan)[:num]
  return Curve(
    label=label,
    margin=MARGINS,
    loss=known * value,
    chosen=known * by_w / chosen.slope[:num] * sum(weight),
    rejected=known * by_l / rejected.slope[:num] * sum(weight),
  )


def divisors(name: str) -> tuple[str, ...]:
  """What the sums of the values of a loss are divided by, in its own words."""
  objective, hyper = (
    losses.make_objective((name,)),
    losses.default_hyper({name: 1.0}),
  )
  zero = np.zeros(4)
  parts = jax.eval_shape(
    lambda scores: objective.values(*scores, harness.batch_of(), hyper)[name][
      1
    ],
    _scores(zero, zero),
  )
  return tuple(parts)


def divides(loss: records.Loss) -> bool:
  """Whether a loss divides log-ratios by lengths: then D is of these means."""
  means = (
    'a_w/|w|' in loss.formula or loss.static.get('reduction', 'x')[0] == 'mean'
  )
  return loss.reward == 'log_ratio' and means


def moving_reference(name: str) -> tuple[np.ndarray, np.ndarray]:
  """(steps, reference) while the policy goes from 0 to 1, each a number."""
  option = losses.get_option(name)
  hyper = losses.default_hyper({base(name): 1.0}, (name,))
  hyper = {key: hyper[key] for key in option.hyper}

  def update(reference, step):
    reference = option.fn(reference, step / STEPS[-1], step, **hyper)
    return reference, reference

  every = jnp.arange(STEPS[-1] + 1)
  _, path = jax.lax.scan(update, jnp.float32(0), every)
  return STEPS, np.asarray(path)[STEPS]


def _scores(a_w, a_l):
  """Scores of policy and reference at log-ratios [4], nats."""
  return harness.scores_of(
    a_w,
    a_l,
    tokens=TOKENS,
    policy=(LOGP + a_w, LOGP + a_l),
    mismatched=0.0,
    kl=KL,
    # The aligned log-probability of WPO is 0 where policy and reference agree.
    log_sum_sq=(LOGP, LOGP),
    away=(np.array(STEP), 0.0),
    toward=(-np.array(STEP), 0.0),
  )


@functools.cache
def _directions():
  """Changes of the policy's scores per nat of each log-ratio of the first.

  The reference stays: what harness.py changes of it, such as the sums over
  the first tokens, the policy changes in the other direction.
  """
  zero, one = np.zeros(4), np.eye(4)[0]
  start, moved = _scores(zero, zero), (_scores(one, zero), _scores(zero, one))
  return [
    jax.tree.map(jnp.subtract, policy, start[0])._replace(
      heads_2P=(policy.heads_2P - start[0].heads_2P)
      - (reference.heads_2P - start[1].heads_2P)
    )
    for policy, reference in moved
  ]


class _Side(NamedTuple):
  """One answer at each D; arrays [N]."""

  nats: np.ndarray  # its log-ratio
  slope: np.ndarray  # of its reward by its log-ratio
  exists: np.ndarray  # False where no probability gives that reward


@functools.cache
def _sides(kind, divided, has_reference, hyper) -> tuple[_Side, _Side]:
  """Both answers at MARGINS and OTHERS.

  Args:
    kind: one of records.REWARDS.
    divided: whether the reward is per token.
    has_reference: without one, no log-probability may exceed 0.
    hyper: what the reward reads, ((key, value), ...).
  """
  hyper = {key: jnp.float32(value) for key, value in hyper}

  def reward(nats, num_tokens):
    given = metrics.implicit_reward(kind, LOGP + nats, LOGP, num_tokens, hyper)
    return given / num_tokens if divided else given

  with_slope = _compiled(jax.value_and_grad(reward))
  margins = jnp.asarray(np.concatenate([MARGINS, OTHERS]), jnp.float32)
  middle = sum(reward(jnp.zeros(()), jnp.float32(n)) for n in TOKENS) / 2
  sides = []
  for num, target in zip(TOKENS, (middle + margins / 2, middle - margins / 2)):
    nats, tokens = jnp.zeros_like(margins), jnp.full_like(margins, num)
    # Newton's method: one step where the reward is linear, as most are.
    for _ in range(8):
      given, slope = with_slope(nats, tokens)
      nats = nats + (target - given) / slope
    given, slope = with_slope(nats, tokens)
    exists = jnp.abs(given - target) < 1e-4
    if not has_reference:
      exists &= nats < -LOGP
    nats = jnp.where(exists, nats, 0.0)
    sides.append(_Side(*map(np.asarray, (nats, slope, exists))))
  return tuple(sides)


def _compiled(fn):
  """`fn` of numbers as a function of arrays [N], compiled in haste."""
  options = {
    'xla_backend_optimization_level': 0,
    'xla_llvm_disable_expensive_passes': True,
  }
  return jax.jit(jax.vmap(fn), compiler_options=options)
