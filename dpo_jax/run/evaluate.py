"""scores -> metrics, over a held-out set: the evaluation loop.

Comes in: a job, parameters, the reference, and a function that gives the
batches. Goes out: mean metrics under TRL's names, and the values of every
comparison and labelled completion, ready to be saved. Changes no state.
"""

import json
import pathlib
import re
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from ml_collections.config_dict import ConfigDict

from dpo_jax import config as config_lib
from dpo_jax import metrics as metrics_lib
from dpo_jax.data.sources import source as sources
from dpo_jax.metrics import Examples, Mean
from dpo_jax.run import finite
from dpo_jax.run import job as job_lib
from dpo_jax.run import reference as reference_lib
from dpo_jax.run import session as sessions
from dpo_jax.run.datasets import Part
from dpo_jax.storage import files, state_items
from dpo_jax.types import Frozen, Params


def main(config: ConfigDict, workdir: str, step: str = '') -> int:
  """--mode=evaluate: evaluates a policy of the run on held-out data.

  Prints the metrics and writes evaluate/NAME.json and per_example/NAME.npz,
  where NAME follows from data.eval. The run's own evaluations stay.
  """
  parts = config_lib.parts_read(config, 'evaluate')
  with sessions.open_workdir(config, workdir, parts=parts) as session:
    job = session.job
    # The running means of losses, and a reference that moved, belong to the
    # checkpoint too: the loss would be another one without them.
    more = {'loss_state': job.abstract.loss_state}
    if job.reference_every:
      more[state_items.REFERENCE] = job.weights.abstract
    policy = sessions.policy(session, more, step)
    job, reference = reference_lib.prepare(
      job,
      session.cache_dir,
      session.poll,
      policy.items.get(state_items.REFERENCE),
    )
    metrics, examples = evaluate(
      job,
      policy.params,
      reference,
      job_lib.batch_source(job, job.eval_plan, job.inputs.evaluation),
      session.poll,
      policy.items.get('loss_state'),
    )
    finite.check_evaluation(
      policy.step, metrics, policy.params, reference, config
    )
  arrays = per_example(job.inputs.evaluation, examples)
  path = session.directory.write_evaluation(
    source_name(config.data.eval),
    {
      'step': policy.step,
      'data': config.data.eval,
      # Of the records and their order: the same file may be another tomorrow.
      'records': files.bytes_digest([b''.join(arrays['uid'].tolist())]),
      'num_values': len(arrays['uid']),
      'metrics': metrics,
    },
    arrays,
  )
  print(f'{path}: {len(arrays["uid"])} comparisons or labelled answers')
  print(f'step {policy.step}: {json.dumps(metrics)}')
  return 0


def source_name(source: str) -> str:
  """The name of an evaluation on a source: its file's, without suffixes.

  `split` gives `evaluate`, `data/test.jsonl.gz` gives `test`, and
  `tfds:hh_rlhf:test[:100]` gives `tfds_hh_rlhf_test_100`. A name that a run's
  own evaluations have, `eval_90`, gets `data_` before it.
  """
  if source == 'split':
    return 'evaluate'
  name = source
  if not source.startswith(sources.TFDS):
    name = pathlib.PurePath(source).name
    name = re.sub(r'(\.(jsonl?|parquet|arrow|gz))+$', '', name)
  name = re.sub(r'[^\w.-]+', '_', name).strip('._-') or 'data'
  return f'data_{name}' if re.fullmatch(r'eval_\d+', name) else name[:100]


def evaluate(
  job: job_lib.Job,
  params: Params,
  reference: Frozen,
  batches: Callable[[int], Any],
  poll: Callable[[], None] = lambda: None,
  loss_state=None,
) -> tuple[dict[str, float], Examples]:
  """Evaluates `params` once on every batch of the evaluation plan.

  Args:
    job: its eval_step, eval_plan, objective and hyper are read.
    params: the trained parameters.
    reference: the frozen arrays of the run.
    batches: step -> batch, on the devices.
    poll: called between batches; raises to stop (a signal came).
    loss_state: of the train state; None = the initial one.

  Returns:
    (metrics; Examples as numpy arrays in the order of the data, without
    padding). `loss` is the weighted sum of the terms' means over the set.
  """
  totals: metrics_lib.Sums = {}
  parts: list[Examples] = []
  pending = None
  for t in range(job.eval_plan.steps_per_epoch):
    poll()
    outputs = job.eval_step(
      params, reference, batches(t), job.hyper, loss_state
    )
    if pending is not None:  # read one batch while the next one computes
      _collect(pending, totals, parts)
    pending = outputs
  _collect(pending, totals, parts)
  examples = jax.tree.map(lambda *fields: np.concatenate(fields), *parts)
  return _means(totals, job), examples


def per_example(part: Part, examples: Examples) -> dict[str, np.ndarray]:
  """Returns the arrays to save of an evaluation, each value with its ids.

  Args:
    part: the records that were evaluated.
    examples: of all records in `part`, padding removed.

  Returns:
    Arrays per comparison, or per labelled completion if nothing is compared:
    those of Examples, the record's `uid` and its `prompt_id` (hex of the
    sha256 of the prompt's tokens).
  """
  table, indices = part.store.table, part.indices
  values = examples.comparisons
  offsets, present = table.comparison_offsets, table.weight > 0
  if examples.labelled and not len(values['weight']):
    values = examples.labelled
    offsets, present = table.offsets, table.labels >= 0
  # Values per record: a record may hold several comparisons or labels.
  counts = np.diff(np.concatenate([[0], np.cumsum(present)])[offsets])[indices]
  return {
    'uid': np.repeat(table.uids[indices], counts),
    'prompt_id': np.repeat(table.prompts[indices], counts),
    **values,
  }


def _collect(outputs, totals, parts) -> None:
  """Adds a batch's sums to `totals`, and its examples to `parts`."""
  # device_get waits for the batch. Python floats are float64: float32 sums over
  # a large set would lose digits.
  sums, examples = jax.device_get(outputs)
  for name, value in sums.items():
    before = totals.get(name, Mean(0.0, 0.0))
    totals[name] = Mean(
      before.total + float(value.total), before.count + float(value.count)
    )
  parts.append(Examples(*map(_present, examples)))


def _present(values):
  """The values with a weight above 0."""
  if not values:
    return {}
  kept = values['weight'] > 0
  return {name: array[kept] for name, array in values.items()}


def _means(totals, job) -> dict[str, float]:
  """Means over the whole set, from sums over its batches."""
  means = metrics_lib.means(totals)
  # Batches differ in their numbers of comparisons, so the loss comes from the
  # terms' means over the set, never from a mean of the batches' losses.
  terms = {
    f'terms/{name}': means.pop(f'terms/{name}') for name in job.objective.terms
  }
  loss = sum(
    float(job.hyper[f'weight/{name}']) * terms[f'terms/{name}']
    for name in job.objective.terms
  )
  first = {'loss': loss} | (terms if len(terms) > 1 else {})
  if 'entropy' in means:
    first['entropy'] = means['entropy']  # nats per completion token
  return first | {k: float(v) for k, v in means.items()}
