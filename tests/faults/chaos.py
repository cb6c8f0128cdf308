"""R14 chaos: one run of two processes under random faults.

Comes in: the processes of scripts/supervise.sh. Goes out: counted faults, and
whether the run ended as one that was left alone.
"""

import os
import pathlib
import signal
import subprocess
import sys
import time

import crews
import machine
from score import Line, OutOfTime

_SUPERVISE = machine.ROOT / 'scripts' / 'supervise.sh'
_LAUNCH = machine.ROOT / 'scripts' / 'launch_local.sh'


def survives_chaos(line: Line) -> None:
  """R14: random faults against one supervised run of two processes."""
  # About 20 s per fault, with the steps that are made over again.
  count = line.pick(2, min(150, int(3 * line.minutes)))
  if line.pick(150, count) < 150:
    line.notes.append(f'{count} of 150 faults, for --minutes')
  steps = 6 * count
  options = {'train__num_steps': steps, 'train__save_every': 2}
  options |= {'train__eval_every': steps // 2}
  whole, workdir = line.place('whole'), line.place('chaos')
  with _supervised(whole, options) as run:
    if run.wait(timeout=machine.LIMIT * 4):
      raise RuntimeError(_said(whole))
  run = _supervised(workdir, options)
  try:
    for _ in range(count):
      _wait_on(workdir, machine.last_step(workdir) + 2, run)
      if run.poll() is not None:
        break
      line.fault(_strike(line, workdir))
  except OutOfTime:
    # No more faults; the run goes on to its end, and is compared.
    line.notes.append('ended by --minutes')
  finally:
    code = run.wait(timeout=machine.LIMIT * 4)
  if code:
    line.violations.append(f'exit {code}: {_said(workdir)[-600:]}')
    return
  problem = machine.differences(
    machine.outcome(workdir), machine.outcome(whole)
  )
  if problem:
    line.violations.append(f'the final state: other {problem}')


def _supervised(workdir: pathlib.Path, options) -> subprocess.Popen:
  """Starts two processes of a run under the script that starts them again."""
  program = [str(_SUPERVISE), '--wait=0', '--tries=9', '--']
  program += [str(_LAUNCH), '--uncommitted', '2', '--']
  program += machine.flags(workdir, **options)
  env = os.environ | {'PYTHON': sys.executable, 'PYTHONPATH': str(machine.ROOT)}
  env |= {'DPO_JAX_HEARTBEAT': str(crews.HEARTBEAT)}
  env |= {'XLA_FLAGS': '--xla_backend_optimization_level=0'}
  with open(_log(workdir), 'w') as file:
    return subprocess.Popen(
      program, env=env, stdout=file, stderr=file, cwd=machine.ROOT
    )


def _log(workdir: pathlib.Path) -> pathlib.Path:
  return workdir.with_suffix('.out')


def _said(workdir: pathlib.Path) -> str:
  return _log(workdir).read_text()


def _wait_on(workdir, step: int, run) -> None:
  """Waits until a run gets to a step, or ends."""
  until = time.monotonic() + machine.LIMIT
  while machine.last_step(workdir) < step and run.poll() is None:
    if time.monotonic() > until:
      return
    time.sleep(0.05)


def _strike(line: Line, workdir) -> str:
  """Hurts one process of the run, or its newest step; returns in words how."""
  found = _processes(str(workdir))
  if not found:
    return 'no process'
  pid = line.random.choice(found)
  kind = line.random.choice(('kill', 'kill', 'term', 'int', 'twice', 'flip'))
  time.sleep(line.random.random() * 0.3)
  numbers = {'term': signal.SIGTERM, 'int': signal.SIGINT}
  try:
    if kind == 'twice':
      os.kill(pid, signal.SIGTERM)
      time.sleep(0.1)
      os.kill(pid, signal.SIGTERM)
    else:
      os.kill(pid, numbers.get(kind, signal.SIGKILL))
  except ProcessLookupError:
    return 'it was gone'
  if kind == 'flip':
    # The newest step, once no process writes any more.
    while _processes(str(workdir)) == found:
      time.sleep(0.05)
    steps = machine.steps(workdir)
    listed = (
      [
        p
        for p in (workdir / 'checkpoints' / str(steps[-1])).rglob('*')
        if p.is_file() and p.stat().st_size
      ]
      if len(steps) > 1
      else []
    )
    if listed:
      path = line.random.choice(sorted(listed))
      data = bytearray(path.read_bytes())
      data[line.random.randrange(len(data))] ^= 16
      path.write_bytes(data)
  return kind


def _processes(word: str) -> list[int]:
  """The trainers whose command names a folder."""
  found = []
  for path in pathlib.Path('/proc').glob('[0-9]*/cmdline'):
    try:
      words = path.read_bytes().decode(errors='replace').split('\0')
    except OSError:
      continue
    if 'dpo_jax.main' in words and any(word in w for w in words):
      if any(w.startswith('--process_id=') for w in words):
        found.append(int(path.parent.name))
  return sorted(found)
