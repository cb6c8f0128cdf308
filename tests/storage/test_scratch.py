"""scratch.py: copies that follow their objects, and nothing left behind."""

import os
import pathlib
import signal
import subprocess
import sys

from dpo_jax.storage import files, scratch

ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_a_copy_follows_its_object(bucket, tmp_path):
  path = bucket / 'a' / 'b.txt'
  path.write_bytes(b'one')
  copy = scratch.copy(path)
  assert copy.read_bytes() == b'one' and copy.name == 'b.txt'
  written = copy.stat().st_mtime_ns
  assert scratch.copy(path).stat().st_mtime_ns == written  # not read again
  path.write_bytes(b'three')
  assert scratch.copy(path).read_bytes() == b'three'
  (bucket / 'a' / 'c' / 'd').write_bytes(b'x')
  folder = scratch.copy_folder(bucket / 'a')
  assert (folder / 'c' / 'd').read_bytes() == b'x'
  # A path of this machine is its own copy.
  assert scratch.copy(tmp_path) is tmp_path
  assert scratch.copy_folder(tmp_path) is tmp_path
  assert scratch.stand_in(tmp_path) is tmp_path
  assert files.at(tmp_path) is tmp_path


def test_a_killed_process_leaves_its_folder_to_the_next_one(tmp_path):
  code = (
    'from dpo_jax.storage import scratch; import sys, time\n'
    'print(scratch.folder(), flush=True)\n'
    'time.sleep(60 * int(sys.argv[1]))'
  )
  run = [sys.executable, '-c', code]
  environment = os.environ | {'TMPDIR': str(tmp_path), 'PYTHONPATH': str(ROOT)}
  killed = subprocess.Popen([*run, '1'], stdout=-1, text=True, env=environment)
  first = pathlib.Path(killed.stdout.readline().strip())
  living = subprocess.Popen([*run, '1'], stdout=-1, text=True, env=environment)
  second = pathlib.Path(living.stdout.readline().strip())
  assert first.is_dir() and second.is_dir()
  killed.send_signal(signal.SIGKILL)
  killed.wait()
  subprocess.run([*run, '0'], env=environment, check=True)
  assert os.listdir(tmp_path) == [second.name]  # that of the living one
  living.kill()
  living.wait()
  killed.stdout.close()
  living.stdout.close()
