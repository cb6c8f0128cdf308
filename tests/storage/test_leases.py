"""leases.py: one holder of a name, whoever dies or sleeps."""

import json
import subprocess
import sys

import pytest

from dpo_jax.storage import buckets, leases
from dpo_jax.types import InputError


@pytest.fixture(autouse=True)
def quick(monkeypatch):
  monkeypatch.setattr(leases, 'BEAT_SECONDS', 0.02)
  monkeypatch.setattr(leases, 'ALIVE_SECONDS', 0.3)
  monkeypatch.setattr(leases, '_WATCH_SECONDS', 0.2)


def elsewhere(path, **more):
  """Makes a holder a process of another machine."""
  value = json.loads(path.read_bytes()) | more
  value['process'] = value['process'] | {'boot': 'another'}
  path.write_bytes(json.dumps(value).encode())


def numbers(folder):
  return sorted(p.name for p in folder.iterdir())


def test_one_holds_it_until_it_is_released(bucket):
  first, second = leases.Lease(bucket), leases.Lease(bucket)
  assert first.take() == ''
  assert second.take() == leases.owner() == leases.holder(bucket)
  first.confirm()
  first.release()
  assert leases.holder(bucket) == ''
  assert second.take() == ''
  # Its number stays, so that no holder of long ago has the newest again.
  assert numbers(bucket) == ['000002.json']
  second.release()
  first.release()
  assert json.loads((bucket / '000002.json').read_bytes())['released']


def test_a_process_of_this_machine_that_ended_holds_nothing(bucket):
  code = (
    'import json, os; from dpo_jax.storage import leases\n'
    'print(json.dumps(leases._process(os.getpid())))'
  )
  process = json.loads(subprocess.check_output([sys.executable, '-c', code]))
  value = {'owner': 'dead', 'token': 'x', 'time': 9e9, 'process': process}
  (bucket / '000004.json').write_bytes(json.dumps(value).encode())
  lease = leases.Lease(bucket)
  assert leases.holder(bucket) == ''
  assert lease.take() == '' and numbers(bucket) == ['000005.json']
  lease.release()


def test_a_silent_holder_loses_it_and_hears_so(bucket, monkeypatch):
  silent = leases.Lease(bucket)
  monkeypatch.setattr(silent, '_beat_on', lambda: None)
  assert silent.take() == ''
  elsewhere(bucket / '000001.json')
  said = []
  second = leases.Lease(bucket)
  assert second.take(patient=True, log=said.append) == ''
  assert 'watching it for' in said[0]
  with pytest.raises(InputError, match='another process took this run over'):
    silent.confirm()
  silent.release()  # of what it has no more
  assert 'released' not in json.loads((bucket / '000002.json').read_bytes())
  second.confirm()
  second.release()


def test_a_clock_that_is_wrong_costs_a_living_holder_nothing(bucket):
  living = leases.Lease(bucket)
  assert living.take() == ''
  sign = living._sign

  def by_another_clock(**more):
    value = json.loads(sign(**more)) | {'time': 0.0}
    return json.dumps(value | {'process': {'boot': 'another'}}).encode()

  living._sign = by_another_clock
  living._say()
  assert leases.Lease(bucket).take(log=lambda line: None) == leases.owner()
  assert (
    leases.Lease(bucket).take(patient=True, log=lambda line: None)
    == leases.owner()
  )
  living.confirm()
  living.release()


def test_of_two_that_take_it_at_once_one_gets_it(bucket, monkeypatch):
  first, second = leases.Lease(bucket), leases.Lease(bucket)
  top = second._top

  def slow():
    answer = top()
    if not first._path:
      assert first.take() == ''
    return answer

  monkeypatch.setattr(second, '_top', slow)
  assert second.take() == leases.owner()
  first.release()


def test_a_store_without_such_a_put_is_refused(bucket, monkeypatch):
  leases.check(bucket)
  assert not bucket.exists()
  write = buckets.Path.write_bytes
  monkeypatch.setattr(
    buckets.Path, 'write_bytes', lambda path, data, new=False: write(path, data)
  )
  with pytest.raises(InputError, match='no put that fails if'):
    leases.check(bucket)
  assert not bucket.exists()
