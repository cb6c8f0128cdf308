"""scores of batches -> one held-out set -> its metrics, computed once.

Comes in: the scores of policy and reference on every evaluation batch, with the
batches' comparisons and labels; or the arrays that an evaluation saved. Goes
out: mean metrics under TRL's names, values per comparison and labelled
completion, and the arrays to save. Runs no model and reads no file.

The objective sees the whole set as one batch. So losses of a whole batch (a
baseline, a sort, a moving beta) and metrics over pairs of labelled completions
depend neither on the order of the file nor on eval.batch_size. Arithmetic is
in float64, on the CPU.

Memory: no array has more than one axis of the set, and none lies on the
devices that train. 100,000 comparisons of three completions each (chosen,
rejected, mismatched) take 0.15 GB of host memory for sigmoid, 0.5 GB for kto,
bco, aot, infonca and cpo together, and about a second once compiled.
"""

import contextlib
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dpo_jax import errors, types
from dpo_jax import metrics as metrics_lib
from dpo_jax.losses.objective import LossState, Objective
from dpo_jax.metrics import Examples, Mean

_AGAIN = 'evaluate the run again'
# Fields of types.Batch with one value per completion.
_DATA = tuple(
  name
  for name in types.Batch._fields
  if name not in ('rows', 'comparisons', 'reference')
)


class HeldOut(NamedTuple):
  """Scores and data of evaluation batches, numpy arrays."""

  policy: types.CompletionScores  # [C]
  reference: types.CompletionScores | None  # [C]; None = no loss reads it
  batch: types.Batch  # rows and reference are None


def join(parts: Sequence[HeldOut]) -> HeldOut:
  """Returns the batches as one, in their order, without padding.

  At least one completion and one comparison stay, of weight 0 if need be: no
  loss has to work on empty arrays.

  Args:
    parts: the batches, as they were scored.
  """
  first, shifted = 0, []
  for part in parts:
    shifted.append(_shifted(part, first))
    first += len(part.policy.logps)
  # The last axis is the set's, of [C], [P] and [2, P] alike.
  joined = jax.tree.map(lambda *each: np.concatenate(each, axis=-1), *shifted)
  return _without_padding(joined)


def measure(
  objective: Objective,
  hyper: Mapping[str, Any],
  held_out: HeldOut,
  state: LossState | None = None,
) -> tuple[dict[str, float], Examples]:
  """Evaluates the objective and all metrics on a whole set.

  Args:
    objective: the losses; need not be those of the run that made the scores.
    hyper: as in Objective, on the host.
    held_out: from `join` or `from_arrays`.
    state: the running numbers of the losses, on the host; None = initial ones.

  Returns:
    (metrics; Examples as numpy arrays in the order of the set, values of weight
    0 left out). `loss` is the weighted sum of the terms. A mean over nothing
    is absent, and so is the loss if no term counts anything.
  """
  with _precise() as put:
    state = initial_state(objective) if state is None else state
    outputs = _measure(objective, *put((*held_out, dict(hyper), state)))
    sums, examples = jax.device_get(outputs)
  means = {name: float(v) for name, v in metrics_lib.means(sums).items()}
  names = [name for name in objective.terms if f'terms/{name}' in means]
  terms = {f'terms/{name}': means.pop(f'terms/{name}') for name in names}
  first = {}
  if terms:
    first['loss'] = sum(
      float(hyper[f'weight/{name}']) * terms[f'terms/{name}'] for name in names
    )
  if len(objective.terms) > 1:
    first |= terms
  if 'entropy' in means:
    first['entropy'] = means['entropy']  # nats per completion token
  return first | means, jax.tree.map(np.asarray, _present(examples))


def initial_state(objective: Objective) -> dict[str, dict[str, float]]:
  """Returns the running numbers before any update, without a device."""
  entries = (*objective.losses, *objective.transforms)
  return {entry.name: dict(entry.state) for entry in entries if entry.state}


def to_arrays(
  held_out: HeldOut, state: LossState | None = None
) -> dict[str, np.ndarray]:
  """Returns a set and the running numbers as arrays with dotted names."""
  policy, reference, batch = held_out
  groups = {
    'policy': policy._asdict(),
    'reference': reference._asdict() if reference else {},
    'comparisons': batch.comparisons._asdict(),
    'data': {name: getattr(batch, name) for name in _DATA},
    **{f'state.{name}': numbers for name, numbers in (state or {}).items()},
  }
  return {
    f'{group}.{name}': np.asarray(values)
    for group, fields in groups.items()
    for name, values in fields.items()
    if values is not None
  }


def from_arrays(
  arrays: Mapping[str, np.ndarray], where: Any
) -> tuple[HeldOut, dict[str, dict[str, np.ndarray]]]:
  """Returns the set and the running numbers that `to_arrays` was given.

  Args:
    arrays: by dotted name.
    where: the file, for messages.

  Raises:
    InputError: an array is missing or its length is not that of the others.
  """
  groups: dict[str, dict[str, np.ndarray]] = {}
  for name, values in arrays.items():
    group, _, field = name.rpartition('.')
    groups.setdefault(group, {})[field] = values
  try:
    reference = groups.get('reference')
    held_out = HeldOut(
      types.CompletionScores(**groups['policy']),
      types.CompletionScores(**reference) if reference else None,
      types.Batch(
        rows=None,
        comparisons=types.Comparisons(**groups['comparisons']),
        **groups['data'],
      ),
    )
    _check(held_out)
  except (KeyError, TypeError, ValueError, IndexError) as error:
    raise errors.refuse(
      where, f'does not hold the scores of a whole set ({error})', _AGAIN
    ) from error
  states = {
    group.removeprefix('state.'): numbers
    for group, numbers in groups.items()
    if group.startswith('state.')
  }
  return held_out, states


def _shifted(part: HeldOut, first: int) -> HeldOut:
  """The batch with the indices that it has in the whole set."""
  batch, prompt = part.batch, part.batch.prompt_index
  comparisons = batch.comparisons
  comparisons = comparisons._replace(
    winner=comparisons.winner + first, loser=comparisons.loser + first
  )
  # A batch has at most as many prompts as completions.
  prompt = np.where(prompt >= 0, prompt + first, -1)
  return part._replace(
    batch=batch._replace(comparisons=comparisons, prompt_index=prompt)
  )


def _without_padding(held_out: HeldOut) -> HeldOut:
  """The set without the places of batches that hold nothing."""
  policy, reference, batch = held_out
  kept = _not_empty(policy.num_tokens > 0)
  winner, loser, weight, margin = batch.comparisons
  # A comparison of weight 0 still tells which answer of a prompt is best;
  # padding compares a completion with itself.
  real = _not_empty(
    ((weight > 0) | (winner != loser)) & kept[winner] & kept[loser]
  )
  # The new index of each completion that is kept.
  number = np.maximum(np.cumsum(kept) - 1, 0).astype(winner.dtype)

  def pick(scores):
    fields = {k: v for k, v in scores._asdict().items() if v is not None}
    # The suffix P says that a field is by comparison.
    return types.CompletionScores(
      **{
        k: v[..., real if k.endswith('P') else kept] for k, v in fields.items()
      }
    )

  data = {name: getattr(batch, name) for name in _DATA}
  data = {k: None if v is None else v[kept] for k, v in data.items()}
  prompts, index = np.unique(data['prompt_index'], return_inverse=True)
  # -1 = no prompt stays -1.
  data['prompt_index'] = (index - (prompts[0] < 0)).astype(np.int32)
  comparisons = types.Comparisons(
    number[winner[real]], number[loser[real]], weight[real], margin[real]
  )
  return HeldOut(
    pick(policy),
    reference and pick(reference),
    types.Batch(rows=None, comparisons=comparisons, **data),
  )


def _not_empty(kept: np.ndarray) -> np.ndarray:
  """The mask, with its first place kept if it keeps none."""
  if not kept.any():
    kept = np.arange(len(kept)) == 0
  return kept


@contextlib.contextmanager
def _precise():
  """Yields `put(tree)`: to float64 on the CPU, where `tree` is computed with.

  A TPU without a CPU backend computes in float32. Copies are explicit, as the
  loop's transfer guard demands.
  """
  try:
    device = jax.local_devices(backend='cpu')[0]
  except RuntimeError:  # JAX_PLATFORMS leaves the CPU out
    device = jax.local_devices()[0]
  wide = _is_wide(device)
  dtype = np.float64 if wide else np.float32

  def number(leaf):
    leaf = np.asarray(leaf)
    return leaf.astype(dtype) if leaf.dtype.kind == 'f' else leaf

  with jax.enable_x64(wide), jax.default_device(device):
    yield lambda tree: jax.device_put(jax.tree.map(number, tree), device)


def _is_wide(device) -> bool:
  """Whether a device computes in float64."""
  return device.platform != 'tpu'


@functools.partial(jax.jit, static_argnums=0)
def _measure(objective: Objective, policy, reference, batch, hyper, state):
  """(Sums of all metrics, Examples), on the devices."""
  denominators = objective.denominators(batch, policy.num_tokens)
  _, terms = objective(policy, reference, batch, hyper, denominators, state)
  each = objective.values(policy, reference, batch, hyper, state)
  sums = metrics_lib.score_sums(objective, policy, reference, batch, hyper)
  for name, (_, parts) in each.items():
    # A term of which no part counts anything has no mean.
    counts = [denominators[divisor] for divisor in parts]
    count = (jnp.max(jnp.stack(counts)) > 0).astype(policy.logps.dtype)
    sums[f'terms/{name}'] = Mean(terms[name], count)
  if policy.entropy is not None:
    sums['entropy'] = _entropy(policy, batch)
  return sums, metrics_lib.examples(
    objective, policy, reference, batch, hyper, state
  )


def _entropy(policy: types.CompletionScores, batch: types.Batch) -> Mean:
  """The sums of the entropy over the tokens of the prompts' own answers."""
  # A mismatched answer is scored for KTO's baseline only: it is not data.
  extra = batch.mismatched
  own = 1.0 if extra is None else (extra == 0).astype(policy.logps.dtype)
  return Mean(jnp.sum(own * policy.entropy), jnp.sum(own * policy.num_tokens))


def _present(examples: Examples) -> Examples:
  """The examples with a weight above 0."""

  def present(values):
    if not values:
      return {}
    kept = values['weight'] > 0
    return {name: array[kept] for name, array in values.items()}

  return Examples(present(examples.comparisons), present(examples.labelled))


def _check(held_out: HeldOut) -> None:
  """Raises ValueError or IndexError if sizes or indices do not fit."""
  policy, reference, batch = held_out
  num = len(policy.logps)
  winner, loser, *_ = batch.comparisons
  for scores in (policy, reference):
    for name, values in (scores._asdict() if scores else {}).items():
      wanted = len(winner) if name.endswith('P') else num
      if values is not None and values.shape[-1] != wanted:
        raise ValueError(f'{name} has {values.shape[-1]} of {wanted} values')
  for name in _DATA:
    values = getattr(batch, name)
    if values is not None and len(values) != num:
      raise ValueError(f'{name} has {len(values)} of {num} values')
  for index in (winner, loser, batch.prompt_index):
    if len(index) and not -1 <= index.min() <= index.max() < num:
      raise IndexError('an index is out of range')
