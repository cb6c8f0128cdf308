"""numerics: dtype by device; a kernel runs if it is proven, or not at all."""

import types

import jax
import jax.numpy as jnp
import pytest

from dpo_jax import config as config_lib
from dpo_jax.models.decoder_config import DecoderConfig
from dpo_jax.models.kernels import proof, registry
from dpo_jax.run import numerics
from dpo_jax.types import InputError

EXPERIMENT = 'experiments/quickstart.py:runlocal'
MODEL = DecoderConfig(
  vocab_size=8,
  width=8,
  mlp_width=8,
  num_layers=2,
  num_heads=2,
  num_kv_heads=1,
  head_size=8,
  layer_windows=(5, 0),
)


@pytest.fixture
def config():
  return config_lib.load(EXPERIMENT)


@pytest.fixture
def backend(monkeypatch):
  """Claims another backend, and kernels that are dense attention or are not."""

  def claim(name, error):
    monkeypatch.setattr('jax.default_backend', lambda: name)
    errors = proof.Errors(error, error, 0.0, 0.0)
    monkeypatch.setattr(proof, 'compare', lambda *_: errors)

  return claim


def choose(config, name='auto', **options):
  config.model.attention = name
  return numerics.choose_kernel(config, MODEL, (), **options)


def test_auto_computes_in_float32_on_a_cpu(config):
  assert numerics.compute_dtype(config) == jnp.float32
  config.precision.compute = 'bfloat16'
  assert numerics.compute_dtype(config) == jnp.bfloat16


def test_auto_is_blocks_on_a_cpu_and_dense_in_a_plan(config, backend):
  assert choose(config) == registry.Choice('blocks')
  backend('tpu', 0.0)
  assert choose(config, is_planned=True) == registry.DENSE


def test_auto_takes_a_proven_kernel_and_no_other(config, backend, caplog):
  backend('tpu', 1e-6)
  assert choose(config).name == 'splash'
  assert not caplog.records
  backend('tpu', 1e-2)
  assert choose(config) == registry.DENSE
  (record,) = caplog.records
  assert 'attention is not splash: with window none its value differs' in (
    record.getMessage()
  )


@pytest.mark.parametrize('error', [1e-2, float('nan')])
def test_a_named_kernel_that_is_wrong_is_refused(config, backend, error):
  backend('tpu', error)
  with pytest.raises(InputError, match="^config.model.attention: 'splash': wi"):
    choose(config, 'splash')


def test_a_kernel_that_does_not_compile_is_refused(config, monkeypatch):
  def fail(*_):
    raise NotImplementedError('no such tile\nand a long story')

  monkeypatch.setattr(proof, 'compare', fail)
  with pytest.raises(InputError, match='NotImplementedError: no such tile;'):
    choose(config, 'splash')


@pytest.mark.parametrize('name', ['cudnn', 'fa4', 'tokamax'])
def test_a_kernel_of_other_devices_is_refused_in_one_line(config, name):
  with pytest.raises(InputError) as refused:
    choose(config, name)
  assert 'this is cpu; fix: use auto' in str(refused.value)


def test_the_first_lines_name_kernel_head_and_flags(config, monkeypatch):
  monkeypatch.setenv('XLA_FLAGS', '--xla_one')
  line = numerics.describe(registry.Choice('splash'), 4096, config)
  assert line == (
    'attention: splash, equal to dense attention on a row of this run; head: '
    'chunks of 4,096 positions; XLA_FLAGS=--xla_one'
  )


@pytest.mark.parametrize(
  ('backend', 'flags', 'is_bitwise'),
  [
    ('gpu', '', False),
    ('gpu', '--xla_gpu_deterministic_ops=false', False),
    ('gpu', '--xla_gpu_deterministic_ops=true --xla_one', True),
    ('gpu', '--xla_gpu_deterministic_ops', True),
    ('tpu', '', True),
  ],
)
def test_a_gpu_that_adds_in_any_order_is_not_called_bitwise(
  config, monkeypatch, backend, flags, is_bitwise
):
  monkeypatch.setattr(jax, 'default_backend', lambda: backend)
  monkeypatch.setenv('XLA_FLAGS', flags)
  line = numerics.describe(registry.DENSE, 4096, config)
  assert ('not bitwise from run to run' in line) != is_bitwise
  # Of devices that are only planned nothing is known.
  line = numerics.describe(registry.DENSE, 4096, config, is_here=False)
  assert 'bitwise' not in line


@pytest.mark.parametrize(
  ('backend', 'chunk'), [('cpu', 1024), ('gpu', 4096), ('tpu', 2048)]
)
def test_auto_projects_by_device(config, monkeypatch, backend, chunk):
  monkeypatch.setattr(jax, 'default_backend', lambda: backend)
  assert numerics.head_chunk(config) == chunk
  line = numerics.describe(registry.DENSE, chunk, config)
  assert f'head: chunks of {chunk:,} positions' in line
  for given in (0, 64):
    chosen = config_lib.load(EXPERIMENT, [('precision.head_chunk', str(given))])
    assert numerics.head_chunk(chosen) == given
  config.precision.compute = 'bfloat16'
  line = numerics.describe(registry.DENSE, 0, config)
  assert 'head: bfloat16 logits kept for the backward pass' in line


def test_logits_are_kept_only_where_memory_is_known(config, monkeypatch):
  assert numerics.room_for_logits(config, is_planned=False) == 0  # a CPU
  device = types.SimpleNamespace(memory_stats=lambda: {'bytes_limit': 1000})
  monkeypatch.setattr(jax, 'local_devices', lambda: [device])
  assert numerics.room_for_logits(config, is_planned=False) == 600
  assert numerics.room_for_logits(config, is_planned=True) == 0
  given = config_lib.load(EXPERIMENT, [('precision.head_chunk', '4096')])
  assert numerics.room_for_logits(given, is_planned=False) == 0
  # Two processes could see other limits, and wait for each other forever.
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  assert numerics.room_for_logits(config, is_planned=False) == 0
