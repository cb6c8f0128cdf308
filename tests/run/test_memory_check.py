"""memory.check: states and batches that no device has room for are refused."""

from types import SimpleNamespace

import pytest
from commands import LLAMA, build

from dpo_jax import types
from dpo_jax.run import memory


def test_a_state_beyond_the_device_is_refused_by_its_shapes(
  tmp_path, monkeypatch
):
  job = build(tmp_path, LLAMA.items())
  monkeypatch.setattr(memory, '_room', lambda device: 10**11)
  with pytest.raises(types.InputError) as refusal:
    memory.check(job)
  line = str(refusal.value)
  # Weights, gradients, two moments, the reference: 5 x 4 x 8.03e9 bytes.
  assert line.startswith('config.model: parameters, gradients and moments need')
  assert '161 GB on each device, which has at most 100 GB' in line
  assert 'adapter.rank' in line.split('; fix: ')[1]
  monkeypatch.setattr(memory, '_room', lambda device: 2 * 10**11)
  memory.check(job)
  monkeypatch.setattr(memory, '_room', lambda device: 0)  # not known
  memory.check(job)


def test_a_batch_beyond_the_device_is_refused(tmp_path, monkeypatch):
  job = build(tmp_path)
  monkeypatch.setattr(memory, '_room', lambda device: 10**11)
  memory.check(job)
  job.train_plan.row_counts, job.train_plan.row_length = [10**6], 10**5
  with pytest.raises(types.InputError) as refusal:
    memory.check(job)
  line = str(refusal.value)
  assert line.startswith('config.data.row_length: a batch of 1000000 rows')
  assert 'train.batch_size' in line.split('; fix: ')[1]


@pytest.mark.parametrize('platform', ['gpu', 'tpu'])
def test_a_step_that_may_not_fit_is_said_before_it_starts(
  tmp_path, monkeypatch, platform
):
  job = build(tmp_path)
  need = sum(memory.needed(job))
  device = SimpleNamespace(platform=platform, room=need - 1)
  monkeypatch.setattr(memory, '_room', lambda _: device.room)
  monkeypatch.setattr(memory, '_first_device', lambda _: device)
  line = memory.check(job)
  assert line.startswith('memory: a step needs about')
  assert 'train.microbatches' in line.split('; fix: ')[1]
  assert ('MEM_FRACTION' in line) == (platform == 'gpu')
  device.room = need
  assert memory.check(job) == ''
