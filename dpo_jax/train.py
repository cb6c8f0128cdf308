"""config -> a trained policy in a run directory: the loop.

The one ordering rule, at every step boundary: a step's metrics are read,
tested and written after the next step was dispatched, but always before the
state is evaluated or saved; evaluate, then save with the data position, then
the next batch. So no state is kept whose steps were not seen to be finite,
and a run that is started again repeats nothing and skips nothing.
"""

import math
import time
from typing import NamedTuple

import jax

from dpo_jax import evaluate, inputs, ledger, preemption, run_setup
from dpo_jax.storage import checkpoints, run_dir, writers
from dpo_jax.train_state import TrainState
from dpo_jax.types import Array


class Diverged(Exception):
  """A metric is not finite; the message names step and metric."""


class Pending(NamedTuple):
  """A dispatched step whose metrics have not been read."""

  step: int  # updates done with it
  metrics: dict[str, Array]


def run(config, workdir: str) -> int:
  """Trains as the config says, or continues what the workdir holds.

  Args:
    config: validated ConfigDict.
    workdir: the run directory.

  Returns:
    The exit code: 0 only with a verified last checkpoint and a ledger that
    balances; 1 where the ledger does not.

  Raises:
    InputError: something that was given cannot be used.
    Diverged: a loss or a gradient was not finite; nothing of it is saved.
    preemption.Preempted: a signal came; the state was saved.
  """
  directory = run_dir.RunDir(workdir)
  resolved = run_setup.resolve(config)
  directory.check(resolved)
  if directory.is_done():
    print(f'{workdir}: this run is done, {directory.done_summary()}')
    return 0
  with preemption.Signals() as signals:
    data = inputs.read(config, directory.cache_dir, print, signals.poll)
    directory.create_or_continue(resolved)
    job = run_setup.build(config, data)
    directory.write_env(data.fingerprints)
    with (
      checkpoints.Checkpoints(
        directory.checkpoints, keep=config.train.keep_checkpoints
      ) as saved,
    ):
      state, book = run_setup.start(config, data, job, saved)
      reference = run_setup.reference(config, data, job, signals.poll)
      with writers.MetricWriter(
        workdir, total_steps=job.num_steps, start_step=int(state.step)
      ) as writer:
        Loop(config, job, reference, saved, writer, book, signals.poll).train(
          state
        )
  return 0
