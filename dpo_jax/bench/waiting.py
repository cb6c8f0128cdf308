"""Benchmark of filling rows: does an update of so many milliseconds wait?

Comes in: a token store. Goes out: a line with the seconds that a batch takes
and those that the devices wait for it. The update is a clock that says when it
would be done; the loop and the measure of waiting are those of training.
"""

import statistics
import time

import numpy as np

from dpo_jax.data.batches import pipeline
from dpo_jax.run import clock as clocks
from dpo_jax.storage import token_store

_STEPS = 30


class _Update:
  """An update that was dispatched after another one."""

  def __init__(self, before: '_Update | None', seconds: float):
    now = time.perf_counter()
    self.end = max(now, before.end if before else now) + seconds

  def is_ready(self) -> bool:
    return time.perf_counter() >= self.end


def run(
  store: token_store.TokenStore,
  *,
  batch_size: int,
  row_length: int,
  step_ms: float,
) -> str:
  """Makes batches beside updates that take `step_ms`; returns the line."""
  plan = pipeline.make_plan(
    store.table, seed=0, batch_size=batch_size, row_length=row_length
  )
  clock, before = clocks.Clock(), None
  # A share of the time, of every update but the first.
  waits, seconds, num_rows = [], [], []

  def make(step):
    start = time.perf_counter()
    batch = plan.batch(step, store)
    seconds.append(time.perf_counter() - start)
    num_rows.append(batch.rows[0].shape[1])
    return batch

  for step in range(_STEPS):
    clock.batch(make, step, before)
    update = _Update(before, step_ms / 1000)
    # As the loop does: it reads an update's metrics after the next dispatch.
    if before:
      time.sleep(max(0.0, before.end - time.perf_counter()))
    rates = clock.since_last(updates=1)
    waits += [rates['data_wait_per_second']] if step > 1 else []
    before = update
  return (
    f'{batch_size} prompts in {np.median(num_rows):.0f} rows of {row_length}: '
    f'a batch takes {1000 * statistics.median(seconds):.0f} ms (at most '
    f'{1000 * max(seconds):.0f}); an update of {step_ms:g} ms waits for '
    f'{1000 * statistics.mean(waits) * step_ms / 1000:.2f} ms'
  )
