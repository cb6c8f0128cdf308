"""Cases of judgements: mismatched answers, and data that teach nothing."""

import contextlib
import io
import itertools
import json
import pathlib

import jax.numpy as jnp
import numpy as np
from cases.case import Case

from dpo_jax import main as main_lib
from dpo_jax import types
from dpo_jax.data.batches import length_table, pipeline
from dpo_jax.losses import views

ROOT = pathlib.Path(__file__).resolve().parents[2]
CONFIG = f'--config={ROOT}/experiments/quickstart.py:stage=dpo,runlocal'
# What the ledger and the lines of a run say of judgements.
WORDS = ('labels are', 'comparisons have')


def read(folder, loss, train, held_out=None):
  """What a run says of the judgements in its data, or its refusal.

  Args:
    folder: for the files.
    loss: its only term.
    train: rows.
    held_out: rows; None = pairs that are in order.
  """
  flags = [f'--config.loss.terms.{k}=0' for k in {'sigmoid'} - {loss}]
  for use, rows in (('train', train), ('eval', held_out or pairs(90, 98))):
    path = folder / f'{use}.jsonl'
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    flags.append(f'--config.data.{use}={path}')
  flags.append(f'--config.loss.terms.{loss}=1')
  out, err = (io.TextIOWrapper(io.BytesIO(), 'utf-8') for _ in range(2))
  with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
    code = main_lib.main([CONFIG, '--mode=show', '--num_records=1', *flags])
  texts = []
  for stream in (out, err):
    stream.flush()
    texts.append(stream.buffer.getvalue().decode())
  if code:
    problem = texts[1].strip().partition('; fix: ')[0]
    return f'exit {code}: {problem.replace(f"{folder}/", "")}'
  lines = [x for x in texts[0].splitlines() if any(w in x for w in WORDS)]
  return '; '.join(lines) or 'nothing is said'


def pairs(first, stop, **columns):
  return [
    {'prompt': f'p{i}', 'chosen': f'yes {i}', 'rejected': 'no'} | columns
    for i in range(first, stop)
  ]


def labelled(first, stop, label):
  return [
    {'prompt': f'p{i}', 'completion': f'yes {i}', 'label': label}
    for i in range(first, stop)
  ]


def data(loss, train, held_out=None):
  """A case's `ours`."""
  return lambda folder: read(folder, loss, train, held_out)


# Mismatched answers.


def make_record(i, *sizes, **known):
  """A record whose prompt and answers no other has."""
  answers = tuple(
    np.full(n, 100 * i + k, np.int32) for k, n in enumerate(sizes)
  )
  known = {'uid': f'{i * 7 % 10:016x}'} | known
  return types.EncodedRecord(np.full(2, 7 + i, np.int32), answers, (), **known)


def plan_of(records, **options):
  table = length_table.make_table(records)
  options = {'seed': 0, 'row_length': 64, 'mismatched_length': 64} | options
  return pipeline.make_plan(table, **options)


def sides(_, shuffle=True):
  """How often each side is the mismatched answer in an epoch of pairs."""
  records = [make_record(i, 3, 4) for i in range(8)]
  plan = plan_of(records, batch_size=4, shuffle=shuffle)
  counts = np.zeros(2, int)
  for t in range(2):
    others, answers = plan.step(t).others
    np.add.at(counts, answers - plan.table.offsets[others], 1)
  return f'{counts[0]} chosen, {counts[1]} rejected'


def held_out_answers(_):
  """Mismatched answers of a set, in every order of 4 and batch size."""
  kinds = set()
  for order in itertools.permutations(range(4)):
    records = [make_record(i, 2 + i, 3) for i in order]
    for size in (1, 3, 4):
      plan, pairs = plan_of(records, batch_size=size, shuffle=False), []
      for t in range(plan.steps_per_epoch):
        step = plan.step(t)
        for i, other, answer in zip(step.records, *step.others):
          if i >= 0:
            k = answer - plan.table.offsets[other]
            pairs.append((order[i], order[other], int(k)))
      kinds.add(tuple(sorted(pairs)))
  return f'{len(kinds)} assignment(s) of {len(kinds.pop())} answers'


def baseline(_):
  """KTO's z of mismatched log-ratios of both sides, beta .1."""
  ratios = jnp.array([3.0, -1, 5, 1, -4, 1, -2, 0])
  num, none = len(ratios), jnp.zeros(1)
  batch = types.Batch(
    rows=None,
    comparisons=types.Comparisons(*[none.astype(int)] * 2, none, none),
    labels=jnp.full(num, -1),
    scores=jnp.zeros(num),
    prompt_index=jnp.arange(num),
    mismatched=jnp.ones(num, jnp.int32),
  )
  policy = types.CompletionScores(ratios, jnp.ones(num))
  frozen = types.CompletionScores(jnp.zeros(num), jnp.ones(num))
  view = views.gather_labelled(policy, frozen, batch)
  return f'{0.1 * max(0.0, float(view.mismatched_log_ratio)):.4f}'


KTO = "KTO's baseline (arXiv:2402.01306; HALOs, train/dataloader.py)"
SCORES = 'odpo where scores tie or are reversed'
LABELS = 'labels of one kind'
WEIGHTS = 'weights that leave nothing'
ZERO = {'weight': 0}
IN_ORDER = {'score_chosen': 2, 'score_rejected': 1}
CASES = [
  Case(
    KTO,
    'log-ratios 3 -1 5 1 after chosen, -4 1 -2 0 after rejected answers',
    '0.0375',
    baseline,
  ),
  Case(KTO, 'sides of an epoch of 8 pairs', '4 chosen, 4 rejected', sides),
  Case(
    KTO,
    'sides of 8 held-out pairs',
    '4 chosen, 4 rejected',
    lambda tmp: sides(tmp, shuffle=False),
  ),
  Case(
    KTO,
    'held out: 24 orders of the file, 3 sizes of a batch',
    '1 assignment(s) of 4 answers',
    held_out_answers,
  ),
  Case(
    SCORES,
    'all tie',
    'train: 40 of 40 comparisons have answers with equal scores: odpo gets no '
    'gradient from them',
    data(
      'odpo',
      pairs(0, 40, score_chosen=1, score_rejected=1),
      pairs(90, 98, **IN_ORDER),
    ),
  ),
  Case(
    SCORES,
    '7 of 40 reversed',
    'train: 7 of 40 comparisons have the higher score on the rejected answer: '
    'odpo gets no gradient from them',
    data(
      'odpo',
      pairs(0, 33, **IN_ORDER)
      + pairs(33, 40, score_chosen=1, score_rejected=4),
      pairs(90, 98, **IN_ORDER),
    ),
  ),
  Case(
    SCORES,
    'held out, both',
    'eval: 1 of 8 comparisons have answers with equal scores: odpo gets no '
    'gradient from them; eval: 2 of 8 comparisons have the higher score on the '
    'rejected answer: odpo gets no gradient from them',
    data(
      'odpo',
      pairs(0, 40, **IN_ORDER),
      pairs(90, 95, **IN_ORDER)
      + pairs(95, 96, score_chosen=0, score_rejected=0)
      + pairs(96, 98, score_chosen=0, score_rejected=1),
    ),
  ),
  Case(
    SCORES,
    'a loss that takes a gap of either sign: reward_aware_rpo',
    'nothing is said',
    data(
      'reward_aware_rpo',
      pairs(0, 40, score_chosen=1, score_rejected=4),
      pairs(90, 98, **IN_ORDER),
    ),
  ),
  Case(
    LABELS,
    'all desirable',
    'train: all 40 labels are desirable: no metric that reads undesirable '
    'answers can be given',
    data('kto', labelled(0, 40, True)),
  ),
  Case(
    LABELS,
    'all undesirable, held out',
    'eval: all 8 labels are undesirable: no metric that reads desirable '
    'answers can be given',
    data(
      'bco',
      labelled(0, 39, True) + labelled(39, 40, False),
      labelled(90, 98, False),
    ),
  ),
  Case(
    LABELS,
    'one undesirable in 16',
    'nothing is said',
    data('kto', labelled(0, 30, True) + labelled(30, 32, False)),
  ),
  Case(
    WEIGHTS,
    'all 0',
    "exit 2: config.data.train: 'weight' is 0 in all 40 comparisons, so no "
    'loss learns',
    data('sigmoid', pairs(0, 40, **ZERO)),
  ),
  Case(
    WEIGHTS,
    'all 0, held out',
    'eval: 8 of 8 comparisons have weight 0: no metric of comparisons can be '
    'given',
    data('sigmoid', pairs(0, 40), pairs(90, 98, **ZERO)),
  ),
  Case(
    WEIGHTS,
    'some 0',
    'train: 5 of 40 comparisons have weight 0',
    data('sigmoid', pairs(0, 35) + pairs(35, 40, **ZERO)),
  ),
  Case(
    WEIGHTS,
    '1e-46, which is 0 in float32',
    "exit 2: train.jsonl:40: 'weight' is 1e-46, which vanishes in float32",
    data('sigmoid', pairs(0, 39) + pairs(39, 40, weight=1e-46)),
  ),
]
