"""precision: the meaning of 'auto' by device."""

import types

import jax
import jax.numpy as jnp
import pytest
from commands import EXPERIMENT

from dpo_jax import config as config_lib
from dpo_jax.run import precision


def test_auto_computes_in_float32_on_a_cpu():
  config = config_lib.load(EXPERIMENT)
  assert precision.compute_dtype(config) == jnp.float32
  config.precision.compute = 'bfloat16'
  assert precision.compute_dtype(config) == jnp.bfloat16


@pytest.mark.parametrize(
  ('backend', 'chunk'), [('cpu', 1024), ('gpu', 4096), ('tpu', 2048)]
)
def test_auto_projects_by_device(monkeypatch, backend, chunk):
  config = config_lib.load(EXPERIMENT)
  monkeypatch.setattr(jax, 'default_backend', lambda: backend)
  assert precision.head_chunk(config) == chunk
  assert f'chunks of {chunk:,} positions' in precision.describe_head(
    chunk, jnp.dtype('float32')
  )
  for given in (0, 64):
    chosen = config_lib.load(EXPERIMENT, [('precision.head_chunk', str(given))])
    assert precision.head_chunk(chosen) == given
  line = precision.describe_head(0, jnp.dtype('bfloat16'))
  assert line.startswith('head: bfloat16 logits') and 'kept' in line


def test_logits_are_kept_only_where_memory_is_known(monkeypatch):
  config = config_lib.load(EXPERIMENT)
  assert precision.room_for_logits(config, is_planned=False) == 0  # a CPU
  device = types.SimpleNamespace(memory_stats=lambda: {'bytes_limit': 1000})
  monkeypatch.setattr(jax, 'local_devices', lambda: [device])
  assert precision.room_for_logits(config, is_planned=False) == 600
  assert precision.room_for_logits(config, is_planned=True) == 0
  given = config_lib.load(EXPERIMENT, [('precision.head_chunk', '4096')])
  assert precision.room_for_logits(given, is_planned=False) == 0
  # Two processes could see other limits, and wait for each other forever.
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  assert precision.room_for_logits(config, is_planned=False) == 0
