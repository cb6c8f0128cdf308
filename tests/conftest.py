"""Eight CPU devices for every test, set before jax starts.

A program that several tests compile comes from a cache for the session, in the
processes that they start too.
"""

import atexit
import os
import pathlib
import shutil
import tempfile

import xla_flags

_FLAGS = ['--xla_force_host_platform_device_count=8', *xla_flags.QUICK]
if 'PYTEST_XDIST_WORKER' not in os.environ:  # workers inherit it
  os.environ['XLA_FLAGS'] = ' '.join([os.environ.get('XLA_FLAGS', ''), *_FLAGS])
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
# A worker has cores of its own: threads of two would wait for one another.
_WORKERS = int(os.environ.get('PYTEST_XDIST_WORKER_COUNT', '0'))
if 0 < _WORKERS <= len(os.sched_getaffinity(0)):
  _NUMBER = int(os.environ['PYTEST_XDIST_WORKER'].removeprefix('gw'))
  # One that takes the place of a worker that crashed has a higher number.
  own = sorted(os.sched_getaffinity(0))[_NUMBER % _WORKERS :: _WORKERS]
  os.sched_setaffinity(0, own)
if 'PYTEST_XDIST_WORKER' not in os.environ:  # workers share what this made
  _COMPILED = tempfile.mkdtemp(prefix='dpo_jax_compiled_')
  atexit.register(shutil.rmtree, _COMPILED, ignore_errors=True)
  os.environ['JAX_COMPILATION_CACHE_DIR'] = _COMPILED
if 'PYTEST_XDIST_WORKER' not in os.environ:  # never the user's own
  _CACHE = tempfile.mkdtemp(prefix='dpo_jax_cache_')
  atexit.register(shutil.rmtree, _CACHE, ignore_errors=True)
  os.environ['DPO_JAX_CACHE'] = _CACHE
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.2'
os.environ['JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES'] = '-1'

import pytest  # noqa: E402

_SHARED = pathlib.Path(
  os.environ.get(
    'DPO_JAX_SHARED',
    pathlib.Path(__file__).resolve().parents[2] / 'shared',
  )
)
# The folder of trl_losses.json.gz (see losses/golden.py) and of hf_models/.
GOLDEN = pathlib.Path(os.environ.get('DPO_JAX_GOLDEN') or _SHARED / 'golden')


@pytest.fixture(scope='session')
def golden_models():
  """The folder of checkpoints with expected logits; skips without it."""
  folder = GOLDEN / 'hf_models'
  if not folder.is_dir():
    pytest.skip(f'no checkpoints at {folder} (set DPO_JAX_GOLDEN)')
  return folder


@pytest.fixture(scope='session')
def trained_llama():
  """The folder of stories260K, or None if it does not exist."""
  folder = _SHARED / 'data/models/stories260K'
  return folder if folder.is_dir() else None


@pytest.fixture(scope='session')
def shared():
  """The folder of real data and weights; skips without it."""
  if not (_SHARED / 'data').is_dir():
    pytest.skip(f'real data is not at {_SHARED} (set DPO_JAX_SHARED)')
  return _SHARED


@pytest.fixture
def bucket(monkeypatch):
  """An empty bucket: an object store of fsspec's in the memory of the test.

  It takes the code that a gs:// bucket takes, down to fsspec's methods.
  """
  import fsspec

  from dpo_jax.storage import buckets, stores

  memory = fsspec.filesystem('memory')
  scheme = stores.Scheme('fsspec', 'memory', checkpoints=False)
  monkeypatch.setitem(stores.SCHEMES, 'mem', scheme)
  monkeypatch.setattr(stores, 'filesystem', lambda scheme: memory)
  yield buckets.Path('mem://bkt')
  if memory.exists('/bkt'):
    memory.rm('/bkt', recursive=True)
