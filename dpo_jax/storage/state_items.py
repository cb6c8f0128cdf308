"""TrainState <-> items of a checkpoint: the mapping, in both directions.

Comes in: the state of training (arrays, or jax.ShapeDtypeStructs to restore
to). Goes out: what `checkpoints.Checkpoints` saves and restores, {item name:
pytree}, and the state again. Touches no disk.

On disk, so no name may change: params, opt_state, loss_state, rng/{key, step},
data/trained, and reference if the reference moves.
"""

from typing import Any, NamedTuple

import numpy as np

from dpo_jax.types import Params, TrainState

POLICY = 'params'  # the item that evaluation, export and later stages read
REFERENCE = 'reference'  # the reference's own weights; absent unless it moves


class Restored(NamedTuple):
  """State of training as a checkpoint holds it."""

  state: TrainState
  trained_counts: np.ndarray  # how often each record was trained on
  reference: Params | None  # weights of a reference that moves


def items_of(
  state: TrainState, trained_counts: np.ndarray, reference: Params | None = None
) -> dict[str, Any]:
  """Returns the items of a checkpoint.

  Args:
    state: the state, or the shapes to restore to.
    trained_counts: int [N], how often each record was trained on.
    reference: weights of the reference if it moves, or their shapes.
  """
  items = {
    POLICY: state.params,
    'opt_state': state.opt_state,
    'loss_state': state.loss_state,
    'rng': {'key': state.key, 'step': state.step},
    'data': {'trained': trained_counts},
  }
  return items if reference is None else {**items, REFERENCE: reference}


def state_of(items: dict[str, Any]) -> Restored:
  """Returns what `items_of` was given; the counts are a writable copy."""
  state = TrainState(
    step=items['rng']['step'],
    params=items[POLICY],
    opt_state=items['opt_state'],
    loss_state=items['loss_state'],
    key=items['rng']['key'],
  )
  # A copy: the loop counts on in place.
  counts = np.array(items['data']['trained'])
  return Restored(state, counts, items.get(REFERENCE))
