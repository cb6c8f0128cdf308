"""claims: one owner, whose claim ends with it; locks that do not reach."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from dpo_jax.storage import leases
from dpo_jax.sweeps import claims
from dpo_jax.types import InputError

# Claims a point, says so, and waits.
HOLD = """
import pathlib, sys, time
from dpo_jax.storage import leases
from dpo_jax.sweeps import claims
with claims.claim(pathlib.Path(sys.argv[1]), 'a') as other:
  print(other or 'mine', flush=True)
  time.sleep(60)
"""


@pytest.fixture
def folder(tmp_path):
  claims.check(tmp_path / 'claims')
  return tmp_path / 'claims'


def hold(folder):
  """A process that has claimed point a."""
  child = subprocess.Popen(
    [sys.executable, '-c', HOLD, str(folder)], stdout=subprocess.PIPE, text=True
  )
  assert child.stdout.readline() == 'mine\n'
  return child


def test_a_claim_is_given_up_when_its_owner_is_killed(folder):
  child = hold(folder)
  try:
    with claims.claim(folder, 'a') as other:
      assert other == claims.alive(folder, 'a')
      assert other.endswith(f':{child.pid}')
    with claims.claim(folder, 'b') as other:  # another point is free
      assert other == ''
  finally:
    child.send_signal(signal.SIGKILL)
    child.wait()
  assert claims.alive(folder, 'a') == ''
  with claims.claim(folder, 'a') as other:
    assert other == ''
    assert claims.alive(folder, 'a') == leases.owner()
  assert claims.alive(folder, 'a') == ''


def test_a_second_claim_in_the_same_process_is_refused(folder):
  with claims.claim(folder, 'a') as first, claims.claim(folder, 'a') as second:
    assert first == '' and second == leases.owner()


def test_looking_takes_no_claim(folder):
  child = hold(folder)
  try:
    assert claims.alive(folder, 'a')
    assert claims.alive(folder, 'b') == ''
  finally:
    child.kill()
    child.wait()


def test_an_owner_on_another_machine_is_noticed_where_locks_do_not_reach(
  folder,
):
  path = folder / 'a.lock'
  path.write_text(json.dumps({'owner': 'far:1', 'time': time.time()}))
  with pytest.raises(InputError, match='far:1.*--sweep.shard'):
    with claims.claim(folder, 'a'):
      pass
  assert claims.alive(folder, 'a') == 'far:1'
  # It stopped writing the time: it has ended.
  path.write_text(json.dumps({'owner': 'far:1', 'time': time.time() - 90}))
  assert claims.alive(folder, 'a') == ''
  with claims.claim(folder, 'a') as other:
    assert other == ''


def test_a_file_system_without_locks_is_refused(folder, monkeypatch):
  def no_locks(*_):
    raise OSError(95, os.strerror(95))

  monkeypatch.setattr(claims.fcntl, 'flock', no_locks)
  with pytest.raises(InputError, match='has no locks.*--sweep.shard'):
    claims.check(folder)


def test_a_claim_in_a_bucket_is_a_lease(bucket):
  claims.check(bucket)
  with claims.claim(bucket, 'a') as first, claims.claim(bucket, 'a') as second:
    assert first == '' and second == leases.owner()
    assert claims.alive(bucket, 'a') == leases.owner()
    with claims.claim(bucket, 'b') as other:
      assert other == ''
  assert claims.alive(bucket, 'a') == ''
  with claims.wait_for(bucket, 'a'):
    pass
