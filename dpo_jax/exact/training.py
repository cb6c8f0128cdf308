"""Training of tables of logits by the train step of the language models.

Comes in: a loss and many cells: references, rewards, weights of comparisons
and hyper-parameters. Goes out: the trained policy of every cell. All cells of
a loss are one compiled program in float64: the same `make_train_step` and the
same `Objective`, over a model that is a table. Judges no result.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dpo_jax import optim, train_step, types
from dpo_jax.losses import objective as objective_lib
from dpo_jax.losses import registry

_RATE = 0.1  # learning rate at beta 1: the optimum moves by about 1 / beta
_WARMUP = 10  # updates
# In float64 the gradient of a comparison of weight 1e-12 is no rounding noise.
_EPS = 1e-16


class Cells(NamedTuple):
  """Problems that are trained side by side; float64 arrays."""

  reference_NXY: np.ndarray  # probabilities
  reward_NXY: np.ndarray  # the data's scores and margins
  weights_NXYY: np.ndarray  # of the comparisons, winner first
  beta: np.ndarray  # [N], scales the learning rate
  hyper: dict[str, np.ndarray]  # {keyword of the loss: [N]}


def train(name: str, cells: Cells, num_steps: int) -> np.ndarray:
  """Trains every cell from its reference, with all comparisons as one batch.

  Args:
    name: of a loss.
    cells: the problems.
    num_steps: updates of AdamW without decay, whose rate is _RATE / beta after
      10 updates and then falls to 0 along half a cosine.

  Returns:
    Probabilities [N, X, Y].
  """
  hyper = cells.hyper | {
    'learning_rate': _RATE / np.minimum(cells.beta, 1),
    f'weight/{name}': np.ones_like(cells.beta),
  }
  numbers = (*cells[:3], hyper)
  with jax.enable_x64(True):
    numbers = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), numbers)
    return np.asarray(_program(name, num_steps)(*numbers))


@functools.cache
def _program(name: str, num_steps: int):
  """The compiled training of all cells of a loss."""
  objective = objective_lib.make_objective((name,))
  pairwise = 'distributions' in objective.needs
  step = train_step.make_train_step(
    _score_both if pairwise else _score,
    objective,
    optimizer := optim.make_optimizer('adamw', eps=_EPS),
    optim.make_schedule('cosine', num_steps=num_steps, warmup_steps=_WARMUP),
  )

  def one(reference_XY, reward_XY, weights_XYY, hyper):
    logits_XY = jnp.log(reference_XY)
    loss_state = jax.tree.map(jnp.float64, objective.init_state())
    state = train_step.init_state(logits_XY, optimizer, 0, loss_state)
    frozen = types.Frozen(weights=logits_XY)
    batch = _batch(reward_XY, weights_XYY)

    def update(state, _):
      return step(state, frozen, batch, hyper)[0], None

    state, _ = jax.lax.scan(update, state, length=num_steps)
    return jax.nn.softmax(state.params)

  return jax.jit(jax.vmap(one))


def _score(params, rows, num_completions, heads=None):
  """Scores of all completions [C], one token each: log softmax per prompt."""
  del rows, num_completions, heads
  logps = jax.nn.log_softmax(params).reshape(-1)
  return types.CompletionScores(logps, jnp.ones_like(logps))


def _score_both(
  params, reference, rows, num_completions, heads=None, epsilon=None
):
  """Scores of policy and reference; the policy's with KL(ref, pi)."""
  del epsilon
  policy = _score(params, rows, num_completions, heads)
  ref = _score(reference, rows, num_completions, heads)
  log_pi, log_ref = jax.nn.log_softmax(params), jax.nn.log_softmax(reference)
  kl = jnp.sum(jnp.exp(log_ref) * (log_ref - log_pi), -1, keepdims=True)
  kl = jnp.broadcast_to(kl, params.shape).reshape(-1)
  return policy._replace(kl=kl), ref


def _batch(reward_XY, weights_XYY) -> types.Batch:
  """All comparisons of a case; every completion is one token of one row."""
  num_prompts, num = reward_XY.shape
  prompt, winner, loser = np.nonzero(
    np.broadcast_to(~np.eye(num, dtype=bool), weights_XYY.shape)
  )
  first, second = prompt * num + winner, prompt * num + loser
  scores = reward_XY.reshape(-1)
  ids = np.arange(num_prompts * num, dtype=np.int32)
  index = jnp.asarray(ids)
  rows = types.Rows(*[jnp.zeros((1, 1, len(ids)), jnp.int32)] * 6)
  return types.Batch(
    rows=rows._replace(completion_id=index[None, None]),
    comparisons=types.Comparisons(
      winner=jnp.asarray(first, jnp.int32),
      loser=jnp.asarray(second, jnp.int32),
      weight=weights_XYY[prompt, winner, loser],
      margin=scores[first] - scores[second],
    ),
    labels=jnp.full(len(ids), -1, jnp.int32),
    scores=scores,
    prompt_index=index // num,
    # No answer of another prompt: KTO's baseline is 0, see docs/exact.md.
    mismatched=jnp.zeros(len(ids), jnp.int32),
  )


def hyper_of(name: str) -> dict[str, float]:
  """Hyper-parameters of a loss and their defaults."""
  return dict(registry.get(name).hyper)
