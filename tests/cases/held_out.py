"""Cases of evaluations: one number for a set, whatever its order and batches.

A policy that differs from its reference (every weight 1.1 times as large) is
evaluated on rows of a file, as `--mode=evaluate` does.
"""

import functools
import json
import math
import pathlib
import tempfile

import jax
import numpy as np
from cases.case import Case

from dpo_jax import config as config_lib
from dpo_jax import losses
from dpo_jax.data.batches import pipeline
from dpo_jax.run import evaluate, held_out, inputs, weights
from dpo_jax.run import job as job_lib

EXPERIMENT = (
  f'{pathlib.Path(__file__).resolve().parents[2]}/experiments/quickstart.py'
  ':stage=dpo,runlocal'
)
WORDS = ('yes', 'no', 'maybe so', 'never at all', 'it may be', 'ask again')


def rows(kind):
  """32 labelled answers of 16 prompts: those that are true come first."""
  table = [
    {'prompt': f'q{i % 16} ', 'completion': WORDS[i % 6] + '!' * (i % 5)}
    | {'label': kind == 'true' or i < 16}
    for i in range(32)
  ]
  if kind == 'mixed':
    return [table[i] for i in np.random.default_rng(0).permutation(32)]
  return table


def pairs():
  """20 pairs of unlike lengths."""
  return [
    {'prompt': f'q{i} ', 'chosen': WORDS[i % 6], 'rejected': WORDS[i % 5] + '?'}
    for i in range(20)
  ]


@functools.cache
def opened(loss, kind):
  """(job, policy, reference) of one loss and one held-out file."""
  table = pairs() if kind == 'pairs' else rows(kind)
  terms = {loss: '1'} if loss == 'sigmoid' else {'sigmoid': '0', loss: '1'}
  with tempfile.TemporaryDirectory() as name:
    path = pathlib.Path(name) / 'rows.jsonl'
    path.write_text(''.join(json.dumps(row) + '\n' for row in table))
    overrides = [(f'loss.terms.{key}', value) for key, value in terms.items()]
    overrides += [('data.train', str(path)), ('data.eval', str(path))]
    overrides += [('data.max_length', '32'), ('data.layout', 'padded')]
    config = config_lib.load(EXPERIMENT, overrides)
    config_lib.validate(config)
    data = inputs.read(config, pathlib.Path(name), log=lambda line: None)
    job = job_lib.build(config, data)
  reference = weights.frozen(job, with_reference=True)
  policy = jax.tree.map(lambda leaf: 1.1 * leaf, reference.weights)
  return job, policy, reference


@functools.cache
def measured(loss, kind, size, moved=True):
  """(metrics, Evaluated) of a file, by batches of a size."""
  job, policy, reference = opened(loss, kind)
  part = job.inputs.evaluation
  plan = pipeline.make_plan(
    part.store.table,
    seed=0,
    batch_size=size,
    shuffle=False,
    indices=part.indices,
    row_length=job.eval_plan.row_length,
    layout='padded',
    row_multiple=job.eval_plan.row_multiple,
    mismatched_length=job.eval_plan.mismatched_length,
    max_shapes=1,
  )
  job = job._replace(eval_plan=plan)
  batches = job_lib.batch_source(job, plan, part)
  return evaluate.evaluate(
    job, policy if moved else reference.weights, reference, batches
  )


def same(loss, *settings):
  """Whether settings (file, batch size) give the same numbers.

  To 1e-6 of the log-probabilities, float32 sums of tens of nats, that all of
  them are computed from.
  """

  def ours(folder: pathlib.Path) -> str:
    first, *others = (measured(loss, *setting)[0] for setting in settings)
    close = 1e-6 * max(map(abs, first.values()))
    wrong = [
      f'{name} {first[name]}, {other.get(name)}'
      for other in others
      for name in first
      if not abs(first[name] - other.get(name, math.nan)) < close
    ]
    return '; '.join(wrong) or f'{len(first)} metrics, {len(settings)} times'

  return ours


def accuracy(folder: pathlib.Path) -> str:
  """The share of all pairs of labels in order, and that by hand."""
  metrics, saved = measured('kto', 'sorted', 8)
  reward, good = saved.labelled['reward'], saved.labelled['desirable'] == 1
  by_hand = (reward[good][:, None] > reward[~good]).mean()
  given = metrics['rewards/accuracies']
  equal = 'equal' if math.isclose(given, by_hand) else 'not equal'
  return f'of {good.sum()} x {(~good).sum()} pairs, {equal}'


def bco(folder: pathlib.Path) -> str:
  """BCO's loss where policy and reference agree, by batches of 32, 8 and 1."""
  found = (measured('bco', 'sorted', n, False)[0]['loss'] for n in (32, 8, 1))
  return ', '.join(f'{loss:.4f}' for loss in found)


def absent(folder: pathlib.Path) -> str:
  """The metrics of rewards that labels of one kind have."""
  metrics, _ = measured('bco', 'true', 32)
  return ', '.join(sorted(k for k in metrics if k.startswith('rewards/')))


def recomputed(loss):
  """A loss from the scores of another's evaluation, and its own."""

  def ours(folder: pathlib.Path) -> str:
    _, saved = measured('kto', 'sorted', 32)
    scored, _ = held_out.from_arrays(saved.whole, 'evaluate.npz')
    hyper = jax.device_get(losses.default_hyper({loss: 1.0}))
    again, _ = held_out.measure(losses.make_objective((loss,)), hyper, scored)
    own, _ = measured(loss, 'sorted', 32)
    is_same = math.isclose(again['loss'], own['loss'], rel_tol=1e-6)
    return 'the same' if is_same else f'{again["loss"]}, {own["loss"]}'

  return ours


CASES = [
  Case(
    'held-out metrics of labels',
    'kto, 16 true then 16 false: batches of 8, 32, 1; the same rows mixed',
    '12 metrics, 4 times',
    same('kto', ('sorted', 8), ('sorted', 32), ('sorted', 1), ('mixed', 8)),
  ),
  Case(
    'held-out metrics of labels',
    'accuracy of these rows, batches of 8 with one label each',
    'of 16 x 16 pairs, equal',
    accuracy,
  ),
  Case(
    'held-out losses of a whole batch',
    'aot on 20 pairs: batches of 20, 8 (a smaller last one), 1',
    '12 metrics, 3 times',
    same('aot', ('pairs', 20), ('pairs', 8), ('pairs', 1)),
  ),
  Case(
    'held-out losses of a whole batch',
    'bco before training, 16 true then 16 false: batches of 32, 8, 1',
    '1.3863, 1.3863, 1.3863',
    bco,
  ),
  Case(
    'a mean over nothing',
    'labels of one kind: rewards/* of bco',
    'rewards/chosen',
    absent,
  ),
  Case(
    'a loss from saved scores',
    "bco from the scores of kto's evaluation, and evaluated itself",
    'the same',
    recomputed('bco'),
  ),
]
