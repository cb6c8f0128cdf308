"""updates -> where their time goes: rates, waiting, a trace.

Comes in: the loop's calls. Goes out: rates for the metrics, one line with the
seconds of a run at its end, and a trace of some updates that TensorBoard opens.
Changes no number of the training.

Names of metrics end in `_per_second`: whoever compares two runs leaves these
out, as they depend on the clock.
"""

import contextlib
import functools
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

from dpo_jax.run import peaks
from dpo_jax.run import plan as plan_lib
from dpo_jax.run.job import Job
from dpo_jax.storage import readable

# Not '/jax/core/compile/jaxpr_trace_duration': a trace contains others.
_COMPILES = (
  '/jax/core/compile/jaxpr_to_mlir_module_duration',
  '/jax/core/compile/backend_compile_duration',
)


class Clock:
  """The seconds of a run, from its first batch on."""

  def __init__(
    self, job: Job | None = None, folder: pathlib.Path | None = None
  ):
    """Takes the run, for its FLOPs, and the folder for a trace."""
    self._job = job
    self._folder = folder
    steps = job.config.train.profile_steps if job else ''
    self._traced = tuple(map(int, steps.split(':'))) if steps else None
    self._is_tracing = False
    self._start = time.perf_counter()
    self._compiled = _compile_seconds()[0]
    # By name; compiles within a part are not counted in it.
    self._parts = {'data wait': 0.0, 'evaluation': 0.0, 'checkpoint': 0.0}
    self._last: float | None = None
    self._waited = 0.0  # for data, since the last report
    self._num_steps = 0

  def since_last(self, **amounts: float) -> dict[str, float]:
    """Returns `{name}_per_second` for amounts since the last call.

    The first call returns {}. A call without amounts only restarts the clock.
    `data_wait` is among the amounts: seconds in which the devices had nothing
    to do while a batch was made, at most.
    """
    now, last = time.perf_counter(), self._last
    waited, self._waited = self._waited, 0.0
    self._last = now
    if last is None or now <= last or not amounts:
      return {}
    amounts['data_wait'] = waited
    return {f'{k}_per_second': v / (now - last) for k, v in amounts.items()}

  def batch(self, make: Callable[[int], Any], step: int, busy: Any) -> Any:
    """Returns make(step): the batch; notes whether the devices waited for it.

    Args:
      make: makes a batch.
      step: updates before it.
      busy: arrays of the update before, which are ready when it is done; None
        = there is none.
    """
    self._trace(step, busy)
    start = time.perf_counter()
    batch = make(step)
    # At most: they may have become free in between.
    if _is_done(busy):
      self._waited += time.perf_counter() - start
      self._parts['data wait'] += time.perf_counter() - start
    self._num_steps += 1
    return batch

  @contextlib.contextmanager
  def spent(self, name: str) -> Iterator[None]:
    """Counts the seconds of the context, compiles excepted."""
    start, compiled = time.perf_counter(), _compile_seconds()[0]
    try:
      yield
    finally:
      compiled = _compile_seconds()[0] - compiled
      self._parts[name] += time.perf_counter() - start - compiled

  def lines(self) -> list[str]:
    """Returns where the seconds went, the arithmetic, and the memory.

    One line; none if no batch was made through this clock.
    """
    self._stop()
    if not self._num_steps:
      return []
    total = time.perf_counter() - self._start
    parts = self._parts | {'compile': _compile_seconds()[0] - self._compiled}
    updates = max(0.0, total - sum(parts.values()))
    words = ' + '.join(f'{name} {s:.1f}' for name, s in parts.items())
    flops = plan_lib.step_flops(self._job)['flops_per_device']
    speed = flops * self._num_steps / updates if updates else 0.0
    device = jax.local_devices()[0]
    peak = peaks.flops(device.device_kind)
    memory = (device.memory_stats() or {}).get('peak_bytes_in_use', 0)
    return [
      f'time: {total:.1f} s = updates {updates:.1f} ({updates / total:.0%}) + '
      f'{words}; {speed:.3g} FLOP/s per device'
      + (f', MFU {speed / peak:.1%}' if peak else '')
      + (f'; {readable.size(memory)} at most on one' if memory else '')
    ]

  def _trace(self, step: int, busy: Any) -> None:
    """Starts or ends the trace before the update of this step."""
    if not self._traced:
      return
    first, last = self._traced
    if step >= last:
      jax.block_until_ready(busy)
      self._stop()
    elif step >= first and not self._is_tracing:
      jax.profiler.start_trace(str(self._folder / 'profile'))
      self._is_tracing = True

  def _stop(self) -> None:
    if self._is_tracing:
      jax.profiler.stop_trace()
      self._is_tracing, self._traced = False, None


def counted(name: str) -> Callable:
  """Decorates a function of a Run, whose seconds its clock counts by name."""

  def decorate(function):
    @functools.wraps(function)
    def timed(run, *args, **options):
      with run.clock.spent(name):
        return function(run, *args, **options)

    return timed

  return decorate


def _is_done(busy: Any) -> bool:
  """Whether the update that these arrays come from is done."""
  return all(array.is_ready() for array in jax.tree.leaves(busy))


@functools.cache
def _compile_seconds() -> list[float]:
  """The seconds of all compiles of this process since the first call."""
  total = [0.0]

  def add(event: str, seconds: float, **_: Any) -> None:
    total[0] += seconds * (event in _COMPILES)

  jax.monitoring.register_event_duration_secs_listener(add)
  return total
