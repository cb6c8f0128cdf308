"""R3 elastic: several devices and processes; how they are started."""

import os
import pathlib
import signal
import sys
import time

import machine
from score import Line

sys.path.insert(0, str(machine.ROOT / 'tests' / 'run'))
import many_processes  # noqa: E402

HEARTBEAT = 20  # seconds
_AXES = ('data', 'fsdp', 'tensor')


def crew(line: Line, workdir, processes=2, devices=1, inject=None, **options):
  """Starts the processes of one run; inject: {rank: what to plant}."""
  joins = [
    f'--coordinator_address=localhost:{many_processes.port()}',
    f'--num_processes={processes}',
  ]
  env = {'DPO_JAXHEARTBEAT': str(HEARTBEAT)}
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
