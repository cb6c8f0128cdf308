"""R4 preemption: SIGTERM in every phase of a run, to one process or to two.

Comes in: phases, as the functions that they are. Goes out: whether the run
ended with 143 and its step saved, and whether it then went on to the end of a
run that nobody stopped.
"""

import os
import pathlib
import shutil
import subprocess
from collections.abc import Callable
from typing import NamedTuple

import crews
import kills
import machine
from score import Line


class _Phase(NamedTuple):
  """Where a signal comes."""

  module: str
  function: str  # at whose call
  call: int = 2  # which one; in a run that was resumed it is the first
  options: dict = {}  # of the run


_PHASES = {
  'compile': _Phase('dpo_jax.run.clock', 'Clock.batch'),
  'train': _Phase('dpo_jax.train', 'report'),
  'evaluate': _Phase('dpo_jax.run.evaluate', 'evaluate'),
  'reference pass': _Phase(
    'dpo_jax.run.reference', '_score_all', 1, {'reference__mode': 'cache'}
  ),
  'save': _Phase('dpo_jax.train', 'save'),
  'data wait': _Phase('dpo_jax.run.job', 'host_batch'),
  'samples': _Phase(
    'dpo_jax.run.sample',
    'sample',
    2,
    {'eval__num_samples': 2, 'sample__max_new_tokens': 2},
  ),
}
_RESTORE = _Phase('dpo_jax.storage.checkpoints', 'Checkpoints.restore_latest')
# How a stop comes: one signal; two at once, as of GNU `timeout`, which sends to
# the process and to its group; two stops.
_SENDERS = {
  'once': 'kill -TERM {}; sleep .1',
  'heard twice': 'kill -TERM {0}; sleep .002; kill -TERM {0}; sleep .1',
  'stopped twice': 'kill -TERM {0}; sleep 1; kill -TERM {0}; sleep .1',
}
_TARGETS = {'to rank 0': (0,), 'to rank 1': (1,), 'to both': (0, 1)}


def hears_signals(line: Line) -> None:
  """R4: SIGTERM in every phase saves the step, and the run goes on."""
  phases = dict(_PHASES)
  if line.size == 'small':
    phases = {k: phases[k] for k in ('compile', 'evaluate', 'save')}
  for name, phase in phases.items():
    for how in _SENDERS if line.size == 'full' else ('once',):
      problem = _stop(line, phase, how)
      line.fault(f'SIGTERM {how} in {name}', problem)
  if line.size == 'small':
    return
  for name, phase in {**phases, 'restore': _RESTORE}.items():
    problem = _stop_resumed(line, phase)
    line.fault(f'SIGTERM in {name} of a resumed run', problem)
  for name, phase in phases.items():
    for who, ranks in _TARGETS.items():
      line.fault(f'SIGTERM {who} in {name}', _stop_crew(line, phase, ranks))


def _stop(line: Line, phase: _Phase, how: str) -> str:
  """What is wrong after a signal to a new run of one process."""
  whole = machine.outcome(line.baseline(**phase.options))
  workdir = line.place('stopped')

  def start(plant=None):
    return [line.train(workdir, inject=plant, **_options(phase, workdir))]

  plant = _sender(phase, phase.call, how)
  problem = _is_saved(start(plant), workdir, how == 'stopped twice')
  return problem or _goes_on(start(), workdir, whole)


def _stop_resumed(line: Line, phase: _Phase) -> str:
  """What is wrong after a signal to a run that was stopped before."""
  whole = machine.outcome(line.baseline(**phase.options))
  workdir = line.place('resumed')
  options = _options(phase, workdir)
  first = line.train(workdir, inject=lambda: kills.stop_after(4), **options)
  if first.wait() != 143:
    return f'the first start: exit {first.code}: {first.text()[-300:]}'
  # So that the reference pass is made again.
  if 'data__cache_dir' in options:
    shutil.rmtree(options['data__cache_dir'])
  again = line.train(workdir, inject=_sender(phase, 1, 'once'), **options)
  return _is_saved([again], workdir) or _goes_on(
    [line.train(workdir, **options)], workdir, whole
  )


_CREWS: dict[str, pathlib.Path] = {}  # uninterrupted runs of two, by options


def _stop_crew(line: Line, phase: _Phase, ranks: tuple[int, ...]) -> str:
  """What is wrong after a signal to some of two processes."""
  key = repr(phase.options)
  if key not in _CREWS:
    _CREWS[key] = line.place('whole')
    started = crews.crew(line, _CREWS[key], **phase.options)
    if any([child.wait() for child in started]):
      return f'nobody stopped it: {started[0].text()[-300:]}'
  workdir = line.place('crew')
  options = _options(phase, workdir)
  plants = dict.fromkeys(ranks, _sender(phase, phase.call, 'once'))
  started = crews.crew(line, workdir, inject=plants, **options)
  return _is_saved(started, workdir) or _goes_on(
    crews.crew(line, workdir, **options),
    workdir,
    machine.outcome(_CREWS[key]),
  )


def _options(phase: _Phase, workdir: pathlib.Path) -> dict:
  """Options of a run; scores that an earlier one cached are not found."""
  if 'reference__mode' not in phase.options:
    return phase.options
  return phase.options | {'data__cache_dir': f'{workdir}_cache'}


def _is_saved(started, workdir, may_lose: bool = False) -> str:
  """What is wrong with the end of stopped processes; '' if nothing is."""
  codes = [child.wait() for child in started]
  last = machine.last_step(workdir)
  saved = (machine.steps(workdir) or [0])[-1]
  if set(codes) != {143}:
    return f'exit {codes}: {started[0].text()[-300:]}'
  if not may_lose and saved < last:
    return f'step {last} was made, step {saved} is saved'
  return ''


def _goes_on(started, workdir, whole) -> str:
  """What is wrong with the run that goes on to its end; '' if nothing is."""
  codes = [child.wait() for child in started]
  if any(codes):
    return f'resumed: exit {codes}: {started[0].text()[-300:]}'
  return machine.differences(*map(_numbers, (machine.outcome(workdir), whole)))


def _numbers(outcome):
  """An outcome without the digest of a config: cache folders differ."""
  done = outcome['done'] or {}
  return outcome | {'done': [done.get(k) for k in ('step', 'ledger', 'eval')]}


def _sender(phase: _Phase, call: int, how: str) -> Callable[[], None]:
  """Returns what plants SIGTERM at the n-th call of a phase's function."""
  return lambda: signal_in(phase.module, phase.function, call, how)


def signal_in(module: str, name: str, call: int, how: str) -> None:
  """Plants SIGTERM at the beginning of the n-th call of a function."""
  import importlib

  owner = importlib.import_module(module)
  *path, name = name.split('.')
  for part in path:
    owner = getattr(owner, part)
  function, calls = getattr(owner, name), []

  def hurt(*args, **options):
    calls.append(1)
    if len(calls) == call:
      # From another process: it does not wait for this one's handler.
      subprocess.run(['sh', '-c', _SENDERS[how].format(os.getpid())])
    return function(*args, **options)

  setattr(owner, name, hurt)
