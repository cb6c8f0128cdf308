"""numerics: dtype by device; a kernel runs if it is proven, or not at all."""

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


def test_auto_is_dense_on_a_cpu_and_in_a_plan(config, backend):
  assert choose(config) == registry.DENSE
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
  line = numerics.describe(registry.Choice('splash'), config)
  assert line == (
    'attention: splash, equal to dense attention on a row of this run; head: '
    f'chunks of {config.precision.head_chunk} positions; XLA_FLAGS=--xla_one'
  )
