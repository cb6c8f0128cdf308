"""Optima of losses on tables of logits: closed forms and convex solves.

Comes in: problems as numpy arrays, and a loss with its hyper-parameters. Goes
out: the policy with the smallest loss, or NaN where the loss has no finite or
no unique one. Formulas are written again in numpy float64: nothing here calls
`losses/`, so that the training is compared with something else.

Every completion has one token. With `a` the log-ratio to the reference, a loss
here is a sum over ordered pairs of `w_ij phi(beta (a_i - lambda a_j) + m_ij)`
with a convex phi that falls, or that has its minimum; for losses without a
reference, `a` is log pi. Each is convex in the logits.
"""

import itertools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from scipy import optimize

from dpo_jax.exact.cases import softmax

_NUM_STEPS = 200  # of Newton; the gradient's square root of rounding by then
_SMALL = 1e-9  # share of a prompt's weight that counts as none


class Problem(NamedTuple):
  """Problems that are solved side by side, float64; B = cells times prompts."""

  reference_BY: np.ndarray  # probabilities
  reward_BY: np.ndarray  # nats
  weights_BYY: np.ndarray  # of the comparisons, winner first; sums are 1
  hyper: Mapping[str, np.ndarray]  # {keyword of the loss: [B]}


class Convex(NamedTuple):
  """A loss in the form of the module's docstring."""

  phi: Callable  # D -> (its first derivative, its second derivative)
  weights_BYY: np.ndarray
  scale: np.ndarray  # beta, [B]
  offset_BYY: np.ndarray | float = 0.0  # m
  rejected: np.ndarray | float = 1.0  # lambda, [B]
  has_reference: bool = True
  imitation: np.ndarray | float = 0.0  # weight of -log pi_w, [B]


def solve(name: str, problem: Problem) -> np.ndarray | None:
  """The optimum of a loss.

  Args:
    name: of a loss.
    problem: the problems.

  Returns:
    Probabilities [B, Y], NaN in a row without a finite and unique optimum;
    None if nothing is known of this loss.
  """
  if name not in _SOLVERS:
    return None
  return _SOLVERS[name](problem)


def is_known(name: str) -> bool:
  """Whether `solve` knows the loss."""
  return name in _SOLVERS


def _sigmoid(problem: Problem) -> np.ndarray:
  """-(1-e) log s(D) - e log s(-D): logistic regression on smoothed labels."""
  smoothing = problem.hyper.get('label_smoothing', 0.0)
  return _logistic(problem, _smoothed(problem.weights_BYY, smoothing))


def _robust(problem: Problem) -> np.ndarray:
  """Logistic regression on labels whose flips are taken back.

  Weights may be negative, and the sum stays convex: -log s(-D) is -log s(D)
  plus D.
  """
  e = problem.hyper['label_smoothing'][:, None, None]
  w = problem.weights_BYY
  return _logistic(problem, ((1 - e) * w - e * _turned(w)) / (1 - 2 * e))


def _margin(problem: Problem) -> np.ndarray:
  """-log s(D - m) with m = r_w - r_l, the case's margin column."""
  gap = problem.reward_BY[..., :, None] - problem.reward_BY[..., None, :]
  return _logistic(problem, problem.weights_BYY, offset_BYY=-gap)


def _dpo_shift(problem: Problem) -> np.ndarray:
  """-log s(beta (a_w - lambda a_l))."""
  return _logistic(
    problem, problem.weights_BYY, rejected=problem.hyper['rejected_weight']
  )


def _simpo(problem: Problem) -> np.ndarray:
  """-log s(beta (log pi_w - log pi_l) - gamma)."""
  offset = -problem.hyper['gamma'][:, None, None]
  return _logistic(
    problem, problem.weights_BYY, offset_BYY=offset, has_reference=False
  )


def _cpo(problem: Problem) -> np.ndarray:
  """-log s(beta (log pi_w - log pi_l)) - alpha log pi_w."""
  return _logistic(
    problem,
    problem.weights_BYY,
    has_reference=False,
    imitation=problem.hyper['alpha'],
  )


def _exponential(problem: Problem) -> np.ndarray:
  """exp(-D)."""

  def phi(d):
    return -np.exp(-d), np.exp(-d)

  convex = Convex(phi, problem.weights_BYY, problem.hyper['beta'])
  return _minimum(problem, convex, _bounded(problem.weights_BYY))


def _truncated_quadratic(problem: Problem) -> np.ndarray:
  """max(0, 1 - D)^2."""

  def phi(d):
    return -2 * np.maximum(1 - d, 0), 2.0 * (d < 1)

  convex = Convex(phi, problem.weights_BYY, problem.hyper['beta'])
  return _minimum(problem, convex, _bounded(problem.weights_BYY))


def _ipo(problem: Problem) -> np.ndarray:
  """(h - 1/(2 beta))^2: weighted least squares.

  The normal equations are those of a graph's Laplacian:
  sum_j (w_ij + w_ji) (u_i - u_j) = sum_j (w_ij - w_ji) / (2 beta), u = log pi -
  log ref. If both completions are drawn from mu, u_i = p(i beats mu) / beta.
  """
  w = problem.weights_BYY
  both = w + _turned(w)
  laplacian = _diagonal(both.sum(-1)) - both
  target = (w - _turned(w)).sum(-1) / (2 * problem.hyper['beta'][:, None])
  policies = np.full_like(problem.reference_BY, np.nan)
  has = _bounded(both)
  # A constant in u changes no policy: 1 1^T fixes it.
  u = np.linalg.solve(laplacian[has] + 1.0, target[has, :, None])[..., 0]
  policies[has] = softmax(np.log(problem.reference_BY[has]) + u)
  return policies


def _reward_aware(problem: Problem) -> np.ndarray:
  """All of its distances are 0 where D is reward_scale (r_w - r_l)."""
  scale = problem.hyper['reward_scale'] / problem.hyper['beta']
  logits = np.log(problem.reference_BY) + scale[:, None] * problem.reward_BY
  both = problem.weights_BYY + _turned(problem.weights_BYY)
  return np.where(_bounded(both)[:, None], softmax(logits), np.nan)


def _nll(problem: Problem) -> np.ndarray:
  """-log pi_w: the distribution of the winners."""
  wins = problem.weights_BYY.sum(-1)
  total = wins.sum(-1, keepdims=True)
  return np.where(total > 0, wins / np.where(total > 0, total, 1), np.nan)


def _hinge(problem: Problem) -> np.ndarray:
  """max(0, 1 - D): a linear program per problem, in D's unit beta u."""
  has_optimum = _bounded(problem.weights_BYY)
  policies = np.full_like(problem.reference_BY, np.nan)
  for b in np.flatnonzero(has_optimum):
    v = _hinge_program(problem.weights_BYY[b])
    logits = np.log(problem.reference_BY[b]) + v / problem.hyper['beta'][b]
    policies[b] = softmax(logits)
  return policies


def _hinge_program(weights: np.ndarray) -> np.ndarray:
  """min sum w t, t >= 0, t >= 1 - (v_i - v_j); v_0 = 0. Returns v [Y]."""
  num = len(weights)
  pairs = np.argwhere(weights > 0)
  cost = np.concatenate([np.zeros(num), weights[weights > 0]])
  above = np.zeros((len(pairs), num + len(pairs)))
  rows = np.arange(len(pairs))
  above[rows, pairs[:, 0]] = -1
  above[rows, pairs[:, 1]] = 1
  above[rows, num + rows] = -1
  bounds = [(0, 0)] + [(None, None)] * (num - 1) + [(0, None)] * len(pairs)
  return optimize.linprog(
    cost, A_ub=above, b_ub=-np.ones(len(pairs)), bounds=bounds
  ).x[:num]


# {loss: its optimum}. At one token per completion, rdpo, sigmoid_norm and tdpo1
# are the sigmoid loss, and sft is nll.
_SOLVERS: dict[str, Callable[[Problem], np.ndarray]] = {
  'sigmoid': _sigmoid,
  'rdpo': _sigmoid,
  'sigmoid_norm': _sigmoid,
  'tdpo1': _sigmoid,
  'robust': _robust,
  'margin': _margin,
  'dpo_shift': _dpo_shift,
  'simpo': _simpo,
  'cpo': _cpo,
  'exponential': _exponential,
  'truncated_quadratic': _truncated_quadratic,
  'hinge': _hinge,
  'ipo': _ipo,
  'reward_aware_rpo': _reward_aware,
  'nll': _nll,
  'sft': _nll,
}


def _logistic(problem: Problem, weights_BYY, **fields) -> np.ndarray:
  """The optimum of a logistic loss with these weights."""

  def phi(d):
    chance = _logistic_function(-d)
    return -chance, chance * (1 - chance)

  convex = Convex(phi, weights_BYY, problem.hyper['beta'], **fields)
  has_optimum = _bounded(weights_BYY)
  if 'imitation' in fields:
    # Every completion wins: log pi of none can go to minus infinity.
    has_optimum = (weights_BYY.sum(-1) > _SMALL).all(-1)
  return _minimum(problem, convex, has_optimum)


def _minimum(
  problem: Problem, convex: Convex, has_optimum: np.ndarray
) -> np.ndarray:
  """The minimum where there is one, NaN elsewhere; probabilities [B, Y]."""
  policies = np.full_like(problem.reference_BY, np.nan)
  if has_optimum.any():
    part = Convex(*(_part(value, has_optimum) for value in convex))
    policies[has_optimum] = _newton(problem.reference_BY[has_optimum], part)
  return policies


def _part(value, has_optimum: np.ndarray):
  """The rows [B, ...] of a field that are solved; scalars stay."""
  is_array = isinstance(value, np.ndarray) and len(value) > 1
  return value[has_optimum] if is_array else value


def _newton(reference_BY: np.ndarray, convex: Convex) -> np.ndarray:
  """Damped Newton from the reference; probabilities [B, Y]."""
  logits = np.log(reference_BY)
  base = logits if convex.has_reference else np.zeros_like(logits)
  for _ in range(_NUM_STEPS):
    gradient, hessian = _derivatives(convex, logits, base)
    # A constant in the logits changes no policy: 1 1^T fixes it. The damping
    # is far below any curvature that matters, and ends with the gradient.
    size = np.abs(gradient).max(-1)
    damping = _diagonal(np.full_like(logits, 1e-3) * size[:, None])
    step = np.linalg.solve(hessian + damping + 1.0, -gradient[..., None])
    step = step[..., 0]
    # In the unit of D no step is longer than 1, and in nats where log pi
    # counts too: the loss is nearly quadratic so far.
    unit = np.where(np.asarray(convex.imitation) > 0, 1.0, 0.0)
    longest = np.ptp(step, axis=-1) * np.maximum(convex.scale, unit)
    logits = logits + step / np.maximum(longest, 1)[:, None]
  return softmax(logits)


def _derivatives(convex: Convex, logits, base):
  """Gradient [B, Y] and Hessian [B, Y, Y] of the loss in the logits."""
  num = logits.shape[-1]
  policy = softmax(logits)
  log_policy = logits - _log_sum(logits)
  a = log_policy - base
  lost = _column(convex.rejected)
  scale = _column(convex.scale)
  d = scale * (a[..., :, None] - lost * a[..., None, :]) + convex.offset_BYY
  first, second = convex.phi(d)
  first, second = (convex.weights_BYY * x for x in (first, second))
  # Gradients of a in the logits: rows of 1 - pi.
  slopes = np.eye(num) - policy[:, None, :]
  slopes = scale[..., None] * (
    slopes[:, :, None] - lost[..., None] * slopes[:, None]
  )
  gradient = np.einsum('bij,bijk->bk', first, slopes)
  hessian = np.einsum('bij,bijk,bijl->bkl', second, slopes, slopes)
  # The second derivative of every a is that of minus the log-sum.
  curvature = _diagonal(policy) - policy[..., :, None] * policy[..., None, :]
  bent = -(first * scale * (1 - lost)).sum((-1, -2))
  imitation = np.broadcast_to(convex.imitation, bent.shape)
  wins = convex.weights_BYY.sum(-1)
  total = wins.sum(-1)
  bent = bent + imitation * total
  gradient = gradient + imitation[:, None] * (total[:, None] * policy - wins)
  return gradient, hessian + bent[:, None, None] * curvature


def _bounded(weights_BYY: np.ndarray) -> np.ndarray:
  """Whether the optimum is finite and unique, bool [B].

  A falling phi pulls a set of completions without end above the others unless
  some of the others beat one of the set: of every set, the weight of lost
  comparisons to the rest must be positive (Ford 1957, for Bradley-Terry).
  """
  num = weights_BYY.shape[-1]
  total = np.abs(weights_BYY).sum((-1, -2))
  bounded = np.ones(len(weights_BYY), bool)
  for chosen in itertools.product((False, True), repeat=num):
    inside = np.array(chosen)
    if inside.any() and not inside.all():
      lost = weights_BYY[:, ~inside][..., inside].sum((-1, -2))
      bounded &= lost > _SMALL * total
  return bounded


def _smoothed(weights_BYY, smoothing) -> np.ndarray:
  """Weights after a share of the labels, scalar or [B], is turned around."""
  share = _column(smoothing)
  return (1 - share) * weights_BYY + share * _turned(weights_BYY)


def _turned(weights_BYY: np.ndarray) -> np.ndarray:
  return np.swapaxes(weights_BYY, -1, -2)


def _diagonal(values: np.ndarray) -> np.ndarray:
  return values[..., None] * np.eye(values.shape[-1])


def _column(value) -> np.ndarray:
  """A scalar or [B] as [B or 1, 1, 1]."""
  return np.reshape(value, (-1, 1, 1))


def _log_sum(logits: np.ndarray) -> np.ndarray:
  top = logits.max(-1, keepdims=True)
  return top + np.log(np.exp(logits - top).sum(-1, keepdims=True))


def _logistic_function(x: np.ndarray) -> np.ndarray:
  return 0.5 * (1 + np.tanh(0.5 * x))
