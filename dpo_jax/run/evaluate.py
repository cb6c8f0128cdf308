"""scores -> metrics, over a held-out set: the evaluation loop.

Comes in: a job, parameters, the reference, and a function that gives the
batches. Goes out: mean metrics under TRL's names, and the values of every
comparison and labelled completion, ready to be saved. Changes no state. The
devices score, batch by batch; held_out.py computes with all scores at once.
"""

import json
import pathlib
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections.config_dict import ConfigDict

from dpo_jax import config as config_lib
from dpo_jax.data.batches import length_table
from dpo_jax.data.sources import source as sources
from dpo_jax.run import diagnose as diagnosis
from dpo_jax.run import finite, held_out, processes, weights
from dpo_jax.run import job as job_lib
from dpo_jax.run import reference as reference_lib
from dpo_jax.run import session as sessions
from dpo_jax.run.datasets import Part
from dpo_jax.run.held_out import HeldOut
from dpo_jax.storage import example_file, files, state_items
from dpo_jax.types import Frozen, Params


class Evaluated(NamedTuple):
  """What an evaluation saves beside its metrics, numpy arrays by name."""

  comparisons: dict[str, np.ndarray]  # [P], see metrics.Examples
  labelled: dict[str, np.ndarray]  # [E]
  whole: dict[str, np.ndarray]  # see held_out.to_arrays


def main(
  config: ConfigDict, workdir: str, step: str = '', diagnose: bool = False
) -> int:
  """--mode=evaluate: evaluates a policy of the run on held-out data.

  Prints the metrics and writes evaluate/NAME.json and per_example/NAME.npz,
  where NAME follows from data.eval. The run's own evaluations stay. With
  `diagnose`, also prints what stands out in them and in the run's metrics.
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
  if diagnose:
    own = session.directory.config()['data']['eval']
    told = diagnosis.of_run(
      session.directory.path, metrics, arrays, is_own=config.data.eval == own
    )
    print(*told, sep='\n')
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
  is_first: bool = False,
) -> tuple[dict[str, float], Evaluated]:
  """Scores the held-out set with `params`, then evaluates all of it at once.

  Args:
    job: its eval_step, eval_plan, objective and hyper are read.
    params: the trained parameters.
    reference: the frozen arrays of the run.
    batches: step -> batch, on the devices.
    poll: called between batches; raises to stop (a signal came).
    loss_state: of the train state; None = the initial one.
    is_first: whether these are the parameters before the first update. Runs
      of a sweep that start from the same ones score them once.

  Returns:
    (metrics, see held_out.measure; what to save beside them).
  """

  def score() -> HeldOut:
    return _score(job, params, reference, batches, poll)

  if is_first:
    key = job.eval_step, weights.seed_of_first(job)
    whole = job.shared.get(job.config, 'first scores', key, score)
  else:
    whole = score()
  hyper, state = jax.device_get((job.hyper, loss_state))
  metrics, examples = held_out.measure(job.objective, hyper, whole, state)
  # Hosts may round differently, and what is best has to be so for all.
  metrics = processes.of_first(metrics)
  return metrics, Evaluated(*examples, held_out.to_arrays(whole, state))


def _score(job, params, reference, batches, poll) -> HeldOut:
  """The scores of policy and reference on the whole held-out set."""
  parts, pending = [], None
  for t in range(job.eval_plan.steps_per_epoch):
    poll()
    batch = batches(t)
    scores = job.eval_step(params, reference, batch)
    if pending is not None:  # read one batch while the next one computes
      parts.append(jax.device_get(pending))
    pending = HeldOut(*scores, batch._replace(rows=None, reference=None))
  parts.append(jax.device_get(pending))
  return held_out.join(parts)


def per_example(part: Part, evaluated: Evaluated) -> dict[str, np.ndarray]:
  """Returns the arrays to save of an evaluation, each value with its ids.

  Args:
    part: the records that were evaluated.
    evaluated: of all records in `part`.

  Returns:
    Arrays per comparison, or per labelled completion if nothing is compared:
    those of metrics.Examples, the record's `uid` and its `prompt_id` (hex of
    the sha256 of the prompt's tokens); and, named `whole.*`, the scores of the
    whole set, from which any loss can be computed again.
  """
  table, indices = part.store.table, part.indices
  values = evaluated.comparisons
  offsets, present = table.comparison_offsets, table.weight > 0
  if evaluated.labelled and not len(values['weight']):
    values = evaluated.labelled
    offsets, present = table.offsets, table.labels >= 0
  # Values per record: a record may hold several comparisons or labels.
  counts = np.diff(np.concatenate([[0], np.cumsum(present)])[offsets])[indices]
  # What losses ask the data for: a score that is missing is 0 in a batch.
  columns = sorted(length_table.columns(table, indices))
  whole = evaluated.whole | {'columns': np.array(columns, 'U')}
  return {
    'uid': np.repeat(table.uids[indices], counts),
    'prompt_id': np.repeat(table.prompts[indices], counts),
    **values,
    **{f'{example_file.WHOLE}{k}': v for k, v in whole.items()},
  }
