"""shared: what the runs of a sweep make once, and what they do not share."""

import jax
import numpy as np
from commands import build

from dpo_jax.run import job as job_lib
from dpo_jax.run.shared import Shared


def test_points_of_a_seed_see_the_same_batches(tmp_path, monkeypatch):
  filled = []
  fill = job_lib.host_batch
  monkeypatch.setattr(
    job_lib, 'host_batch', lambda *a: filled.append(a[2]) or fill(*a)
  )
  shared = Shared(batch_bytes=2**20)
  first = build(tmp_path, [])

  def batches(shared, *settings):
    config = first.config.copy_and_resolve_references()
    for key, value in settings:
      config.update_from_flattened_dict({key: value})
    job = job_lib.build(config, first.inputs, shared=shared)
    source = job_lib.batch_source(job, job.train_plan, job.inputs.train)
    return job, [source(t) for t in range(3)]

  job, plain = batches(Shared())
  assert filled == [0, 1, 2]
  own, kept = batches(shared)
  other, again = batches(shared, ('loss.beta', 0.7))
  assert filled == [0, 1, 2] * 2
  assert other.train_plan is own.train_plan is not job.train_plan
  for batch in (kept, again):
    jax.tree.map(np.testing.assert_array_equal, batch, plain)
  # Another seed has another order, another mesh another program.
  seed, _ = batches(shared, ('seed', 5))
  assert filled == [0, 1, 2] * 3 and seed.train_step is own.train_step
  mesh, _ = batches(shared, ('mesh.fsdp', 2))
  assert mesh.train_step is not own.train_step


def test_no_more_batches_are_kept_than_there_is_room_for():
  shared = Shared(batch_bytes=100)
  made = []

  def take(t):
    return shared.batch(('a', 'b'), t, lambda: made.append(t) or np.zeros(6))

  for t in (0, 1, 2, 0, 1, 2):
    take(t)
  # Two of 48 bytes.
  assert made == [0, 1, 2, 2]
