"""Benchmark of a sweep against as many commands: time per run.

Comes in: an experiment and the numbers of points. Goes out: a table of wall and
CPU seconds of separate commands, and of sweeps of the same points in the modes
that are asked for, each in processes of its own with empty caches. A few
separate commands are measured and multiplied, which the table says. Writes to
a scratch folder only.
"""

import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple


class Options(NamedTuple):
  """Flags of scripts/benchmark.py --sweep, one per field."""

  config: str = 'experiments/stories_dpo.py'
  steps: int = 20  # updates of a run
  betas: int = 12
  seeds: int = 5
  commands: int = 6  # separate commands that are measured, with shared caches
  alone: int = 2  # separate commands that are measured, each with empty caches
  modes: tuple[str, ...] = ('loop',)  # of --sweep.mode
  cores_per_point: int = 0  # >= 1: also a sweep by a process per so many cores
  extra: tuple[str, ...] = ()  # further --config.KEY=VALUE of all runs


class _Cost(NamedTuple):
  """Seconds of one or several processes."""

  wall: float
  cpu: float


def run(options: Options) -> str:
  """Runs the benchmark; returns the table as Markdown."""
  points = options.betas * options.seeds
  betas = [0.05 * (i + 1) for i in range(options.betas)]
  common = [f'--config={options.config}', *options.extra]
  common.append(f'--config.train.num_steps={options.steps}')
  rows = []

  def separate(root, name, number, caches):
    """Measures some commands, each a point, and counts them for all."""
    cost = _Cost(0.0, 0.0)
    for i in range(number):
      beta, seed = betas[i % len(betas)], i % options.seeds
      own = [f'--config.loss.beta={beta:g}', f'--config.seed={seed}']
      more = _run([*common, *own], root / f'{len(rows)}_{i}', root / caches(i))
      cost = _Cost(cost.wall + more.wall, cost.cpu + more.cpu)
    part = points / number
    rows.append((name, _Cost(cost.wall * part, cost.cpu * part), points))

  with tempfile.TemporaryDirectory() as scratch:
    root = pathlib.Path(scratch)
    if options.alone:
      name = f'{points} commands, empty caches ({options.alone} measured)'
      separate(root, name, options.alone, lambda i: f'own{i}')
    # As a user would give them: the caches of the first serve the others.
    name = f'{points} commands, shared caches ({options.commands} measured)'
    separate(root, name, options.commands, lambda i: 'caches')
    swept = ['--mode=sweep', f'--sweep.seed=0:{options.seeds}']
    swept.append(f'--sweep.loss.beta={",".join(f"{b:g}" for b in betas)}')
    ways = {mode: [f'--sweep.mode={mode}'] for mode in options.modes}
    if options.cores_per_point:
      cores = options.cores_per_point
      way = f'loop, {cores} core{"s" if cores > 1 else ""} per point'
      ways[way] = [f'--sweep.cores_per_point={cores}']
    for way, flags in ways.items():
      words = [*common, *swept, *flags]
      cost = _run(words, root / way, root / f'caches_{way}')
      rows.append((f'a sweep of {points} points, {way}', cost, points))
  return _table(rows)


def _run(
  words: list[str], workdir: pathlib.Path, caches: pathlib.Path
) -> _Cost:
  """The cost of one command; RuntimeError with its last line if it fails."""
  environ = dict(os.environ, DPO_JAX_CACHE=str(caches))
  command = [sys.executable, '-m', 'dpo_jax.main', *words]
  before = resource.getrusage(resource.RUSAGE_CHILDREN)
  began = time.perf_counter()
  done = subprocess.run(
    [*command, f'--workdir={workdir}'],
    env=environ,
    capture_output=True,
    text=True,
  )
  wall = time.perf_counter() - began
  after = resource.getrusage(resource.RUSAGE_CHILDREN)
  if done.returncode:
    last = (done.stderr or done.stdout).strip().splitlines()[-1:]
    raise RuntimeError(f'{" ".join(command)}: exit {done.returncode}, {last}')
  user = after.ru_utime - before.ru_utime
  return _Cost(wall, user + after.ru_stime - before.ru_stime)


def _table(rows) -> str:
  """The rows, with how many times cheaper each is than the first one."""
  lines = [
    '| way | wall s | CPU s | CPU s per run | cheaper (wall) | cheaper (CPU) |',
    '|---|---|---|---|---|---|',
  ]
  _, first, _ = rows[0]
  for name, cost, points in rows:
    lines.append(
      f'| {name} | {cost.wall:.0f} | {cost.cpu:.0f} | '
      f'{cost.cpu / points:.1f} | {first.wall / cost.wall:.1f} | '
      f'{first.cpu / cost.cpu:.1f} |'
    )
  return '\n'.join(lines)
