"""R8: a number that is not finite, or absurd, in every place of a step."""

import math
import shutil

import machine
import numpy as np
from score import Line

_AT = 3  # updates before the one that is hurt
# 'empty' is of a mask: no token is left.
_VALUES = {
  'empty': -1,
  'NaN': math.nan,
  'inf': math.inf,
  '-inf': -math.inf,
  '1e30': 1e30,
}
_PARTS = 4  # microbatches
_BCO = {'loss__terms__sigmoid': 0, 'loss__terms__bco': 1}
# {place: (values, options)}
_PLACES = {
  'mask': (('empty',), {}),
  # 1e30 is a number like another here: a loss divides by its weights.
  'weights of the batch': (('NaN', 'inf', '-inf'), {}),
  **{
    f'microbatch {k}': (('NaN', 'inf'), {'train__microbatches': _PARTS})
    for k in range(_PARTS)
  },
  'parameters': (('NaN', 'inf', '-inf', '1e30'), {}),
  'leaf of parameters': (('NaN', 'inf', '1e30'), {}),
  'first moments': (('NaN', 'inf', '-inf', '1e30'), {}),
  'leaf of first moments': (('NaN', '1e30'), {}),
  'second moments': (('NaN', 'inf', '1e30'), {}),
  'leaf of second moments': (('NaN', '1e30'), {}),
  'saved parameters': (('NaN', 'inf', '-inf'), {}),
  'saved moments': (('NaN', 'inf'), {}),
  'running mean of the loss': (('NaN', 'inf', '1e30'), _BCO),
  'reference scores': (
    ('NaN', 'inf', '-inf', '1e30'),
    {'reference__mode': 'cache'},
  ),
  'adapter': (('NaN', 'inf', '1e30'), {'adapter__rank': 4}),
}


def halts(line: Line) -> None:
  """R8: the run halts at the step, lists no poisoned one, and is replayed."""
  cases = [(p, v, o) for p, (values, o) in _PLACES.items() for v in values]
  if line.size == 'small':
    cases = [c for c in cases if c[:2] == ('second moments', '1e30')]
  for place, value, options in cases:
    line.fault(f'{value} in {place}', _hurt(line, place, value, options))


def _hurt(line: Line, place: str, value: str, options) -> str:
  """What is wrong with the end of a run that is hurt once."""
  whole = line.baseline(**options)
  workdir = line.place('hurt')

  def plant():
    plant_value(place, _VALUES[value])

  child = line.train(workdir, inject=plant, **options)
  code, text = child.wait(), child.text()
  is_saved = place.startswith('saved')
  said = [f'step {_AT + k}: ' for k in (0, 1, 2)]
  last = text.splitlines()[-1] if text else ''
  if code != 1 or 'Traceback' in text or not last.startswith(tuple(said)):
    return f'exit {code}: {text[-400:]}'
  expected = machine.states(whole)[0]
  for step, digest in machine.states(workdir)[0].items():
    if expected.get(step) != digest:
      return f'step {step} is listed and is not that of the whole run'
  if not is_saved:
    step = last.split()[1].rstrip(':')
    words = ['--mode=replay', f'--workdir={workdir}', f'--step={step}']
    out = workdir.with_name(f'{workdir.name}.replay')
    again = machine.command(words, out)
    if again.wait() or 'have the bits that the run saw' not in again.text():
      return f'the replay: {again.text()[-400:]}'
  # The fault was of that moment: the same command ends as if it were not.
  problem = line.goes_on(workdir, machine.outcome(whole), **options)
  shutil.rmtree(workdir)
  return problem


def plant_value(place: str, value: float) -> None:
  """Plants a number in one place of one step of this process."""
  from dpo_jax import train
  from dpo_jax.run import job as jobs

  if place in _IN_BATCH or place.startswith('microbatch'):
    host_batch = jobs.host_batch

    def hurt(plan, part, t, rows=None):
      batch = host_batch(plan, part, t, rows)
      # An evaluation has one batch, t = 0.
      return _in_batch(place, batch, value) if t == _AT else batch

    jobs.host_batch = hurt
    return
  if place.startswith('saved'):
    save = train.save

    def spoil(run, state, reference, step):
      if step == _AT + 1:
        name = 'params' if place == 'saved parameters' else 'opt_state'
        state = state._replace(**{name: spoilt(getattr(state, name), value)})
      save(run, state, reference, step)

    train.save = spoil
    return
  machine.before_updates(
    lambda made, state: _in_state(place, state, value) if made == _AT else state
  )


_IN_BATCH = ('mask', 'weights of the batch', 'reference scores')


def _in_batch(place: str, batch, value: float):
  """The batch with the number in it."""
  if place == 'reference scores':
    logps = np.array(batch.reference.logps)
    # Of the winner: a loser that the reference likes so much is a pair won.
    logps[batch.comparisons.winner[0]] = value
    return batch._replace(reference=batch.reference._replace(logps=logps))
  if place == 'mask':
    ids = np.full_like(batch.rows.completion_id, value)
    return batch._replace(rows=batch.rows._replace(completion_id=ids))
  weight, at = np.array(batch.comparisons.weight), 0
  if place.startswith('microbatch'):
    # The comparison whose completions lie there.
    own = batch.rows.completion_id[int(place.split()[1])]
    at = np.flatnonzero(np.isin(batch.comparisons.winner, own))[0]
  weight[at] = value
  return batch._replace(comparisons=batch.comparisons._replace(weight=weight))


def _in_state(place: str, state, value: float):
  """The state with the number in it."""
  is_leaf, place = place.startswith('leaf'), place.removeprefix('leaf of ')
  if place in ('parameters', 'adapter'):
    return state._replace(params=spoilt(state.params, value, is_leaf))
  if place == 'running mean of the loss':
    return state._replace(loss_state=spoilt(state.loss_state, value))
  name = 'mu' if place == 'first moments' else 'nu'
  # optax.chain: one of the transformations has the moments.
  chain = tuple(
    part._replace(**{name: spoilt(getattr(part, name), value, is_leaf)})
    if hasattr(part, name)
    else part
    for part in state.opt_state
  )
  return state._replace(opt_state=chain)


def spoilt(tree, value: float, is_leaf: bool = False):
  """A tree whose first array of floats has one element set, or all."""
  import jax

  leaves, structure = jax.tree.flatten(tree)
  at = next(i for i, x in enumerate(leaves) if x.dtype == np.float32)
  with jax.transfer_guard('allow'):
    array = np.array(leaves[at])
    array[... if is_leaf else (0,) * array.ndim] = value
    leaves[at] = jax.device_put(array, leaves[at].sharding)
  return structure.unflatten(leaves)
