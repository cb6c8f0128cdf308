"""scores -> metrics, over a held-out set: the evaluation loop.

Comes in: an evaluation step, parameters, and a function that gives the
batches. Goes out: mean metrics in TRL's names, and the scores of every
comparison. Writes nothing; `train.py` and `verbs.py` do.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from dpo_jax import metrics as metrics_lib
from dpo_jax.losses.examples import Examples
from dpo_jax.losses.objective import Objective


def evaluate(
  eval_step: Callable,
  objective: Objective,
  params,
  reference,
  batches: Callable[[int], Any],
  num_batches: int,
  hyper: Mapping[str, Any],
  poll: Callable[[], None] = lambda: None,
  loss_state=None,
) -> tuple[dict[str, float], Examples]:
  """Evaluates `params` on every batch once.

  Args:
    eval_step: jitted, see train_step.make_eval_step.
    objective: the losses whose weighted sum is reported as `loss`.
    params: the policy's parameters.
    reference: the reference's parameters, or None.
    batches: gives the batch of a step, placed on the devices.
    num_batches: how many there are.
    hyper: float32 scalars.
    poll: called between batches; raises to stop (a signal came).
    loss_state: the train state's running numbers of losses that keep any.

  Returns:
    (metrics, scores of every comparison and labelled completion in the order
    of the data, as numpy arrays of those with a weight > 0).
  """
  totals: dict[str, float] = {}
  scores = []
  pending = None
  for t in range(num_batches):
    poll()
    outputs = eval_step(params, reference, batches(t), hyper, loss_state)
    if pending is not None:  # read the last batch while this one computes
      _collect(pending, totals, scores)
    pending = outputs
  _collect(pending, totals, scores)
  examples = jax.tree.map(lambda *fields: np.concatenate(fields), *scores)
  return _means(totals, objective, hyper), examples


def _collect(outputs, totals, scores):
  sums, examples = jax.device_get(outputs)
  for name, value in sums.items():
    totals[name] = totals.get(name, 0.0) + float(value)
  scores.append(Examples(*map(_present, examples)))


def _present(scores):
  """Those with a weight above 0, of PairScores, LabelledScores or None."""
  if scores is None:
    return None
  there = scores.weight > 0
  return jax.tree.map(lambda field: field[there], scores)


def _means(totals, objective, hyper):
  """Means over the whole set, from sums over its batches."""
  loss = 0.0
  terms = {}
  for term in objective.losses:
    terms[f'terms/{term.name}'] = (
      totals.pop(f'term/{term.name}') / totals[f'denominator/{term.normaliser}']
    )
    weight = float(hyper[f'weight/{term.name}'])
    loss += weight * terms[f'terms/{term.name}']
  sums = {k: v for k, v in totals.items() if not k.startswith('denominator/')}
  tokens = sums.pop('tokens', 0.0)
  entropy = sums.pop('entropy', 0.0)
  means = {'loss': loss} | (terms if len(terms) > 1 else {})
  if tokens:
    means['entropy'] = entropy / tokens  # nats a completion token
  return means | {k: float(v) for k, v in metrics_lib.means(sums).items()}
