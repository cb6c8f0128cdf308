"""R3 elastic, R7 processes, R14 chaos: several devices and processes."""

import math
import os
import pathlib
import signal
import subprocess
import sys
import time

import machine
from score import Line, OutOfTime

sys.path.insert(0, str(machine.ROOT / 'tests' / 'run'))
import many_processes  # noqa: E402

_HEARTBEAT = 20  # seconds
_SUPERVISE = machine.ROOT / 'scripts' / 'supervise.sh'
_LAUNCH = machine.ROOT / 'scripts' / 'launch_local.sh'
_AXES = ('data', 'fsdp', 'tensor')


def crew(line: Line, workdir, processes=2, devices=1, inject=None, **options):
  """Starts the processes of one run; inject: {rank: what to plant}."""
  joins = [
    f'--coordinator_address=localhost:{many_processes.port()}',
    f'--num_processes={processes}',
  ]
  env = {'DPO_JAX_HEARTBEAT': str(_HEARTBEAT)}
  started = []
  for rank in range(processes):
    argv = [*machine.flags(workdir, **options), *joins, f'--process_id={rank}']
    out = line.place(f'{workdir.name}_{rank}').with_suffix('.out')
    plant = (inject or {}).get(rank)
    started.append(machine.command(argv, out, devices, env, plant))
  return started


def moves(line: Line) -> None:
  """R3: a run goes on on other devices and processes: same rows, same loss."""
  layouts = [(1, 2), (1, 4), (1, 8), (2, 1), (2, 2)]
  cells = [(a, b, axis) for a in layouts for b in layouts for axis in _AXES]
  cells = [c for c in cells if c[0] != c[1]]
  line.random.shuffle(cells)
  for before, after, axis in cells[: line.pick(1, 24)]:
    what = f'{before} to {after} by {axis}'
    line.fault(what, _move(line, before, after, axis))


def _start(line, workdir, layout, axis, plant=None, **options):
  processes, devices = layout
  mesh = {'mesh__data': 1, f'mesh__{axis}': -1}
  if processes == 1:
    return [
      line.train(workdir, devices=devices, inject=plant, **mesh, **options)
    ]
  plants = dict.fromkeys(range(processes), plant)
  return crew(line, workdir, processes, devices, plants, **mesh, **options)


def _move(line: Line, before, after, axis: str) -> str:
  """What is wrong after a run moved to other devices in its middle."""
  options = {'train__num_steps': 40, 'train__save_every': 20}
  options |= {'train__batch_size': 8, 'train__eval_every': 0}
  whole = line.baseline(**options)
  workdir = line.place('moved')

  def plant():
    _die_with(workdir / 'checkpoints' / '20')

  started = _start(line, workdir, before, axis, plant, **options)
  codes = [child.wait() for child in started]
  if machine.steps(workdir) != [20] or -signal.SIGKILL not in codes:
    text = started[0].text()
    return f'{codes}: steps {machine.steps(workdir)}, {text[-300:]}'
  for child in _start(line, workdir, after, axis, **options):
    if child.wait():
      return f'exit {child.code}: {child.text()[-300:]}'
  one, other = machine.numbers(whole), machine.numbers(workdir)
  if one.keys() != other.keys():
    return 'other lines'
  for key, value in one.items():
    gap = abs(value - other[key]) if isinstance(value, float) else 0
    if key.endswith('num_tokens') and value != other[key]:
      return f'{key}: other rows'
    if key.endswith(' loss') and not gap <= 1e-6:
      return f'{key}: {gap:.1e} apart'
  return ''


def _die_with(step: pathlib.Path) -> None:
  """Plants a SIGKILL to this process as soon as a step is committed."""
  from dpo_jax import train

  save = train.save

  def then_die(*args):
    save(*args)
    if args[-1] != int(step.name):
      return
    until = time.monotonic() + machine.LIMIT
    while time.monotonic() < until:
      if (step / 'commit_success.txt').exists():
        os.kill(os.getpid(), signal.SIGKILL)
      time.sleep(0.01)

  train.save = then_die


def ends_together(line: Line) -> None:
  """R7: what befalls one process ends all in time, with a line that helps."""
  counts = (2,) if line.size == 'small' else (2, 4)
  kinds = ('kill',) if line.size == 'small' else ('kill', 'stop', 'NaN', 'slow')
  for count in counts:
    for kind in kinds:
      for rank in (1,) if line.size == 'small' else range(min(count, 2)):
        what = f'{kind} of {rank} of {count}'
        line.fault(what, _befall(line, kind, rank, count))


def _befall(line: Line, kind: str, rank: int, count: int) -> str:
  """What is wrong with the end of a crew of which one is hurt."""
  workdir = line.place(kind)
  options = {'train__num_steps': 400, 'train__save_every': 2}
  plants = {'NaN': _nan, 'slow': _slow}
  inject = {rank: plants[kind]} if kind in plants else {}
  started = crew(line, workdir, count, inject=inject, **options)
  machine.wait_for(workdir, 4, started[0])
  if kind == 'slow':
    machine.wait_for(workdir, 8, started[0])
    started[0].kill(signal.SIGTERM)
  elif kind != 'NaN':
    numbers = {'kill': signal.SIGKILL, 'stop': signal.SIGSTOP}
    started[rank].kill(numbers[kind])
  began = time.monotonic()
  others = [c for c in started if c is not started[rank] or kind == 'NaN']
  codes = [child.wait(4 * _HEARTBEAT) for child in others]
  seconds = time.monotonic() - began
  for child in started:
    child.kill(signal.SIGKILL)
    child.wait()
  text = ''.join(child.text() for child in others)
  wanted = {'NaN': 1, 'slow': 143}.get(kind, 3)
  # If the first one goes, jax ends the others: their code is its own.
  if -9 in codes or (rank and any(code != wanted for code in codes)):
    return f'exit {codes} after {seconds:.0f} s: {text[-300:]}'
  if seconds > _HEARTBEAT + 5 and kind in ('kill', 'stop'):
    return f'{seconds:.0f} s, more than {_HEARTBEAT + 5}'
  if rank and wanted == 3 and f'process {rank} of {count}' not in text:
    return f'it is not named: {text[-300:]}'
  return ''


def _nan() -> None:
  """Plants NaN in the parameters that this process holds."""
  from dpo_jax import train

  loop = train._loop

  def hurt_loop(run, state, reference, start):
    step, made = run.job.train_step, [start]

    def train_step(state, *rest):
      if made[0] == 6:
        state = state._replace(params=_spoilt(state.params))
      made[0] += 1
      return step(state, *rest)

    job = run.job._replace(train_step=train_step)
    return loop(run._replace(job=job), state, reference, start)

  train._loop = hurt_loop


def _spoilt(params):
  """Parameters of which the first array is NaN on this process's devices."""
  import jax
  import numpy as np

  leaves, structure = jax.tree.flatten(params)
  array = leaves[0]
  with jax.transfer_guard('allow'):
    parts = [
      jax.device_put(np.full_like(part.data, math.nan), part.device)
      for part in array.addressable_shards
    ]
    leaves[0] = jax.make_array_from_single_device_arrays(
      array.shape, array.sharding, parts
    )
  return structure.unflatten(leaves)


def _slow() -> None:
  """Plants a wait in every batch."""
  from dpo_jax.run import job as jobs

  host_batch = jobs.host_batch

  def slow(*args):
    time.sleep(1)
    return host_batch(*args)

  jobs.host_batch = slow


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
  env |= {'DPO_JAX_HEARTBEAT': str(_HEARTBEAT)}
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
