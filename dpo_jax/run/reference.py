"""rows -> scores of the frozen reference, once for a whole token store.

Comes in: a job, the reference's parameters and a store. Goes out: the score
cache that every beta, loss, seed and learning rate shares.
"""

import pathlib
from collections.abc import Callable

import jax
import numpy as np

from dpo_jax import train_step, tree, types
from dpo_jax.data.batches import pipeline
from dpo_jax.run import job as run_setup
from dpo_jax.run import weights as policy_weights
from dpo_jax.storage import reference_cache
from dpo_jax.types import Params


def reference(
  config, data, job: run_setup.Job, cache_dir, poll, moved: Params | None = None
):
  """The reference as the config wants it.

  Args:
    config: gives the mode and where the reference comes from.
    data: the inputs.
    job: gives the objective and the jitted score function.
    cache_dir: folder of the run's caches.
    poll: raises to stop.
    moved: the reference of a checkpoint, where the run moves it (tr_dpo).

  Returns:
    (parameters or None, (cache of training, cache of evaluation)); the caches
    are None but in mode 'cache'. Nothing at all where no loss needs it. Where
    an adapter is trained, types.Frozen in place of parameters.
  """
  needed, cached = job.objective.needs_reference, (None, None)
  frozen = None
  if job.adapter is not None:
    frozen = policy_weights.frozen(
      config, data, job, with_reference=needed, moved=moved
    )
  if not needed:
    return frozen, cached
  if config.reference.mode == 'cache':
    cached = caches(config, data, job, cache_dir, poll, frozen)
    return frozen and frozen._replace(reference=None, adapter=None), cached
  if frozen is not None:
    return frozen, cached
  return _params(config, data, job) if moved is None else moved, cached


def caches(
  config,
  data,
  job: run_setup.Job,
  cache_dir,
  poll,
  frozen: types.Frozen | None = None,
):
  """Score caches of the training store and of the evaluation store.

  `frozen` is the one of an adapter's run, made here where it is None.
  """
  if job.adapter is None:
    params = _params(config, data, job)
  else:
    frozen = frozen or policy_weights.frozen(
      config, data, job, with_reference=True
    )
    params = train_step.reference_of(frozen)
  folder = pathlib.Path(config.data.cache_dir or cache_dir) / 'reference'
  precision = str(run_setup.compute_dtype(config))
  return tuple(
    scores_of(job, params, part.store, folder, precision=precision, poll=poll)
    for part in (data.train, data.evaluation)
  )


def _params(config, data, job):
  source = config.reference.init_from or data.weights
  return policy_weights.load(config, data, job, source)


def scores_of(
  job: run_setup.Job,
  params: Params,
  store,
  folder: pathlib.Path,
  *,
  precision: str,
  log: Callable[[str], None] = print,
  poll: Callable[[], None] = lambda: None,
) -> reference_cache.ReferenceCache:
  """The reference's scores of every completion of a store, from the cache.

  Args:
    job: gives the jitted score function and how evaluation packs its rows.
    params: the reference's parameters, on the mesh.
    store: the token store.
    folder: where caches lie; made if need be.
    precision: name of the compute dtype, part of the key.
    log: takes one line of text.
    poll: raises to stop.
  """
  name = reference_cache.key(store.digest, tree.fingerprint(params), precision)
  table = store.table
  if reference_cache.is_there(folder, name):
    log(f'reference scores: from the cache {folder / name}')
    return reference_cache.open_cache(
      folder,
      name,
      offsets=table.offsets,
      num_tokens=table.num_trained,
    )
  logps, num_tokens = _score_all(job, params, store, log, poll)
  return reference_cache.write(
    folder,
    name,
    uids=store.uids,
    offsets=table.offsets,
    logps=logps,
    num_tokens=num_tokens,
  )


def _score_all(job, params, store, log, poll):
  """float32 logps and int32 token counts, flat over completions."""
  table, like = store.table, job.eval_plan
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
  batches = run_setup.batch_source(job, plan, store)
  logps = np.full(len(table.completion_lengths), np.nan, np.float32)
  num_tokens = np.zeros(len(logps), np.int32)

  def collect(index, scores):
    there = index >= 0
    logps[index[there]] = np.asarray(scores.logps)[there]
    num_tokens[index[there]] = np.asarray(scores.num_tokens)[there]

  pending = None
  for t in range(plan.steps_per_epoch):
    poll()
    rows = jax.tree.map(lambda x: x[0], batches(t).rows)
    scores = job.score(params, rows, plan.num_completions)
    if pending is not None:  # read while the next batch computes
      collect(*pending)
    pending = plan.completion_index(t), scores
    if (t + 1) % 100 == 0:
      log(f'reference scores: {t + 1} of {plan.steps_per_epoch} batches')
  collect(*pending)
  log(f'reference scores: {len(logps)} completions')
  return logps, num_tokens
