"""rows -> scores of the frozen reference, once per token store.

Comes in: a Job. Goes out: its reference as types.Frozen, and in mode 'cache'
the score caches, which every beta, loss, seed and learning rate shares. Trains
nothing.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from ml_collections.config_dict import ConfigDict

from dpo_jax import tree
from dpo_jax.data.batches import pipeline
from dpo_jax.models import architectures
from dpo_jax.run import job as job_lib
from dpo_jax.run import numerics, processes, weights
from dpo_jax.run import session as sessions
from dpo_jax.run.datasets import Part
from dpo_jax.run.job import Job
from dpo_jax.storage import caches, files, reference_cache
from dpo_jax.types import Frozen, Params


def prepare(
  job: Job,
  cache_dir: files.AnyPath,
  poll: Callable[[], None],
  moved: Params | None = None,
) -> tuple[Job, Frozen]:
  """Returns the reference in the form that config.reference.mode asks for.

  Args:
    job: the run.
    cache_dir: folder of the caches.
    poll: raises to stop.
    moved: the reference of a checkpoint, if the run moves it (tr_dpo).

  Returns:
    (job, reference). In mode 'cache' the job has the reference's scores in both
    parts of its inputs, and the reference has no model.
  """
  # A reference that moves is donated to its next move: nobody else's.
  if job.reference_every:
    return job, weights.frozen(job, with_reference=True, moved=moved)
  made = job.shared.get(
    job.config,
    'reference',
    # Random weights follow the seed.
    None if job.inputs.weights else job.config.seed,
    lambda: _make(job, cache_dir, poll),
  )
  for key, digest in made.taken:
    job.take_weights(key, digest)
  return job._replace(inputs=_with(job, made.scores)), made.reference


class _Made(NamedTuple):
  """A reference, and what was seen while it was loaded."""

  reference: Frozen
  # Of the parts that were read, in mode 'cache'.
  scores: dict[str, reference_cache.ReferenceCache]
  taken: list[tuple[str, str]]  # (config key, digest of the weights)


def _make(job: Job, cache_dir: files.AnyPath, poll) -> _Made:
  """Loads the reference, and scores the records with it in mode 'cache'."""
  taken: list[tuple[str, str]] = []

  def take(key, params):
    taken.append((key, job.take_weights(key, params)))

  seen = job._replace(take_weights=take)
  needed = job.scored.needs_reference
  reference = weights.frozen(seen, with_reference=needed)
  if job.config.reference.mode != 'cache' or not needed:
    return _Made(reference, {}, taken)
  scores = _scores(job, reference, cache_dir, poll)
  # Drops the model, so that its memory is free for training.
  return _Made(Frozen(reference.base, reference.scale), scores, taken)


def _scores(job, reference, cache_dir, poll):
  """{part: its scores} of training and of evaluation, as far as read."""
  folder, params = cache_dir / 'reference', reference.reference()
  return {
    name: scores_of(job, params, part.store, folder, poll=poll)
    for name, part in (
      ('train', job.inputs.train),
      ('evaluation', job.inputs.evaluation),
    )
    if part is not None
  }


def _with(job: Job, scores):
  """The inputs of a job, each part with its scores."""
  parts = {
    name: getattr(job.inputs, name)._replace(scores=own)
    for name, own in scores.items()
  }
  return job.inputs._replace(**parts)


def with_scores(
  job: Job,
  reference: Frozen,
  cache_dir: files.AnyPath,
  poll: Callable[[], None],
) -> Job:
  """Returns the job with precomputed scores for training and evaluation.

  Args:
    job: gives the jitted score function and how evaluation packs its rows.
    reference: the reference model.
    cache_dir: folder of the caches.
    poll: raises to stop.
  """
  scores = _scores(job, reference, cache_dir, poll)
  return job._replace(inputs=_with(job, scores))


def scores_of(
  job: Job,
  params: Params,
  store,
  folder: files.AnyPath,
  *,
  log: Callable[[str], None] = print,
  poll: Callable[[], None] = lambda: None,
) -> reference_cache.ReferenceCache:
  """Returns the reference's scores of a whole store, from the cache or new.

  Args:
    job: gives the jitted score function and how evaluation packs its rows.
    params: the reference's parameters, on the mesh.
    store: the token store.
    folder: of the caches; made if it is missing.
    log: takes one line of text.
    poll: raises to stop.
  """
  # The key holds everything that the scores depend on: tokens, weights, dtype.
  precision = str(numerics.compute_dtype(job.config))
  model = architectures.to_hf_config(job.inputs.model)
  name = reference_cache.key(
    store.digest, tree.fingerprint(params), precision, model
  )
  table = store.table
  # Without a shared disk some may have it: then all score, together.
  if processes.all_true(reference_cache.is_there(folder, name)):
    log(f'reference scores: from the cache {folder / name}')
    caches.touch(folder / f'{name}.npz')
    return _open(folder, name, table)
  logps, num_tokens = _score_all(job, params, store, log, poll)

  def keep() -> reference_cache.ReferenceCache:
    if reference_cache.is_there(folder, name):
      return _open(folder, name, table)
    return reference_cache.write(
      folder,
      name,
      uids=store.uids,
      offsets=table.offsets,
      logps=logps,
      num_tokens=num_tokens,
    )

  return processes.first_then_all(keep)


def _open(folder: files.AnyPath, name: str, table):
  """The scores on disk, which have to be of this table."""
  return reference_cache.open_cache(
    folder, name, offsets=table.offsets, num_tokens=table.num_trained
  )


def _score_all(job, params, store, log, poll):
  """float32 logps and int32 token counts, flat over completions."""
  table, like = store.table, job.eval_plan
  # All records in their order, with one shape: one compile.
  plan = pipeline.make_plan(
    table,
    seed=0,
    batch_size=like.batch_size,
    row_length=like.row_length,
    layout=like.layout,
    row_multiple=like.row_multiple,
    max_shapes=1,
    shuffle=False,
  )
  everything = Part(store, np.arange(len(table.prompt_lengths)))
  batches = job_lib.batch_source(job, plan, everything)
  # NaN marks a completion that no batch had: the cache refuses to be written.
  logps = np.full(len(table.completion_lengths), np.nan, np.float32)
  num_tokens = np.zeros(len(logps), np.int32)

  def collect(index, scores):
    present = index >= 0
    logps[index[present]] = np.asarray(scores.logps)[present]
    num_tokens[index[present]] = np.asarray(scores.num_tokens)[present]

  pending = None
  for t in range(plan.steps_per_epoch):
    poll()
    rows = jax.tree.map(lambda x: x[0], batches(t).rows)  # M is 1
    scores = job.score(params, rows, plan.num_completions)
    if pending is not None:  # read one batch while the next one computes
      collect(*pending)
    pending = plan.completion_index(t), scores
    if (t + 1) % 100 == 0:
      log(f'reference scores: {t + 1} of {plan.steps_per_epoch} batches')
  collect(*pending)
  log(f'reference scores: {len(logps)} completions')
  return logps, num_tokens


def main(config: ConfigDict, workdir: str) -> int:
  """--mode=precompute_reference: fills the cache that mode 'cache' reads."""
  with sessions.open_workdir(config, workdir) as session:
    job = session.job
    reference = weights.frozen(job, with_reference=True)
    with_scores(job, reference, session.cache_dir, session.poll)
  return 0
