"""clock: what is counted as waiting, what adds up, and a trace."""

import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax.run import clock as clocks
from dpo_jax.run import plan as plan_lib


class _Array:
  """Stands for a metric of an update that takes 100 ms on some device."""

  def __init__(self, is_done):
    self.is_ready = lambda: is_done
    self.block_until_ready = lambda: self


def _job(profile_steps=''):
  train = types.SimpleNamespace(profile_steps=profile_steps)
  return types.SimpleNamespace(config=types.SimpleNamespace(train=train))


def test_rates_start_with_the_second_report():
  clock = clocks.Clock()
  assert clock.since_last(tokens=5) == {}
  rates = clock.since_last(tokens=5)
  assert rates['tokens_per_second'] > 0 and rates['data_wait_per_second'] == 0
  assert clock.since_last() == {}


@pytest.mark.parametrize(
  ('busy', 'waits'),
  [
    ({'loss': _Array(False), 'n': _Array(True)}, False),
    ({'loss': _Array(True)}, True),
    (None, True),
  ],
  ids=['at work', 'done', 'first'],
)
def test_devices_at_work_wait_for_no_batch(busy, waits):
  clock = clocks.Clock()
  clock.since_last()
  assert clock.batch(lambda step: np.arange(10**5) + step, 3, busy)[0] == 3
  rate = clock.since_last(tokens=1)['data_wait_per_second']
  assert (rate > 0) is waits and rate <= 1


def test_the_seconds_add_up(monkeypatch):
  monkeypatch.setattr(
    plan_lib, 'step_flops', lambda job: {'flops_per_device': 2e6}
  )
  clock = clocks.Clock(_job())
  assert clock.lines() == []
  with clock.spent('evaluation'):
    jax.jit(lambda x: jnp.tanh(x) * 3)(np.ones(3)).block_until_ready()
  clock.batch(lambda step: step, 0, None)
  (line,) = clock.lines()
  names = ('updates', 'data wait', 'evaluation', 'checkpoint', 'compile')
  total, *parts = (
    float(re.search(rf'{name}:? ([0-9.]+)', line).group(1))
    for name in ('time', *names)
  )
  assert total == pytest.approx(sum(parts), abs=0.3)  # of six rounded numbers
  assert ' FLOP/s per device' in line and 'MFU' not in line
  # The compile is not counted twice.
  assert clock._parts['evaluation'] < clocks._compile_seconds()[0]


def test_a_trace_of_some_updates_is_written(tmp_path):
  clock = clocks.Clock(_job('1:3'), tmp_path)
  step = jax.jit(lambda x: x + 1)
  for t in range(4):
    clock.batch(lambda step: step, t, None)
    step(np.float32(t)).block_until_ready()
    assert clock._is_tracing is (t in (1, 2))
  # The layout that TensorBoard's profile plug-in reads.
  assert list(tmp_path.glob('profile/plugins/profile/*/*.xplane.pb'))
