"""Real commands that are stopped: by SIGTERM, by streams, by disks.

tests/faults has the scorecard; here is one command of each kind.
"""

import os
import pathlib
import signal
import subprocess
import sys
import time
import zlib

from tests.run import commands

LIMIT = 120  # seconds: of a hang, not of a claim


def blanks(path):
  """Writes 10 GB of blank lines in 10 MB: one block, many times."""
  pack = zlib.compressobj(6, zlib.DEFLATED, -15)
  block = pack.compress(b'\n' * 2**20) + pack.flush(zlib.Z_FULL_FLUSH)
  head = b'\x1f\x8b\x08\0\0\0\0\0\0\x03'
  path.write_bytes(head + block * 10_000)


def start(*words, **options):
  command = [sys.executable, '-m', 'dpo_jax.main', *words]
  return subprocess.Popen(
    command, cwd=commands.ROOT, stderr=subprocess.PIPE, text=True, **options
  )


def is_reading(process, path):
  """Whether a process has a file open."""
  folder = pathlib.Path(f'/proc/{process.pid}/fd')
  names = []
  for entry in folder.iterdir():
    try:
      names.append(os.readlink(entry))
    except OSError:
      continue
  return str(path) in names


def test_sigterm_ends_the_reading_of_ten_gigabytes(tmp_path):
  data, workdir = tmp_path / 'blanks.jsonl.gz', tmp_path / 'run'
  blanks(data)
  process = start(
    '--config=experiments/quickstart.py:stage=sft',
    f'--config.data.train={data}',
    f'--workdir={workdir}',
    stdout=subprocess.DEVNULL,
  )
  end = time.monotonic() + LIMIT
  while not is_reading(process, data) and time.monotonic() < end:
    time.sleep(0.05)
  process.send_signal(signal.SIGTERM)
  line = process.communicate(timeout=LIMIT)[1]
  assert process.returncode == 143
  assert line == (
    'stopped by SIGTERM; the same command, given again, continues the run\n'
  )
  assert not workdir.exists() or os.listdir(workdir) == ['.lock']


def test_a_full_disk_under_stdout_is_one_line():
  with open('/dev/full', 'w') as full:
    process = start('--help', stdout=full)
    line = process.communicate(timeout=LIMIT)[1]
  assert process.returncode == 1 and line.count('\n') == 1
  assert line.startswith('stdout: cannot be written (No space left on device')


def test_a_pipe_that_nobody_reads_is_one_line():
  read, write = os.pipe()
  os.close(read)
  process = start('--help', stdout=write)
  os.close(write)
  line = process.communicate(timeout=LIMIT)[1]
  assert process.returncode == 1 and line.count('\n') == 1
  assert line.startswith('stdout: cannot be written (Broken pipe)')
