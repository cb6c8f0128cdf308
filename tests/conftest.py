"""Eight CPU devices for every test, set before jax starts."""

import os
import pathlib

os.environ['XLA_FLAGS'] = (
  os.environ.get('XLA_FLAGS', '') + ' --xla_force_host_platform_device_count=8'
)
os.environ.setdefault('JAX_PLATFORMS', 'cpu')

import pytest  # noqa: E402

_SHARED = pathlib.Path(
  os.environ.get(
    'DPO_JAX_SHARED',
    pathlib.Path(__file__).resolve().parents[2] / 'shared',
  )
)


@pytest.fixture(scope='session')
def shared():
  """The folder of real data and weights; skips where it is not there."""
  if not (_SHARED / 'data').is_dir():
    pytest.skip(f'real data is not at {_SHARED} (set DPO_JAX_SHARED)')
  return _SHARED
