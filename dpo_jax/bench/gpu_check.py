"""Check of one GPU: stages, each in a process and a budget of its own.

Comes in: a folder. Goes out: gpu_check.json and gpu_check.md in it, rewritten
while stages run, so that whatever ends this process keeps what it has, and
gpu_check.log with what the stages said. A stage that fails, is cut off or
cannot be on this machine is named, and the next one follows. Imports no jax:
the device belongs to the stages.

  python -m dpo_jax.bench.gpu_check --out=FOLDER [--tiny] [--list]
"""

import argparse
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

from dpo_jax.bench import gpu_page, gpu_stages
from dpo_jax.bench.gpu_stages import Stage
from dpo_jax.storage import environment, files

ROOT = pathlib.Path(__file__).resolve().parents[2]
_LOG = 'gpu_check.log'
_LEAST = 10  # seconds: no stage starts with less
_GRACE = 3  # seconds between the two signals that stop a stage
# A rehearsal runs on a few slow cores.
_TINY_FACTOR = 5
_MINUTES, _TINY_MINUTES = 6.0, 45.0


def parse(words: list[str]) -> argparse.Namespace:
  """Returns the flags."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument('--out', default='runs/gpu_check', help='folder')
  parser.add_argument('--data', default='', help='JSONL(.gz) of pairs')
  parser.add_argument('--trl_python', default='', help='interpreter with TRL')
  parser.add_argument(
    '--way', default='', help='how packages came, for the page'
  )
  parser.add_argument('--only', default='', help='names of stages, by commas')
  parser.add_argument('--minutes', type=float, default=0.0, help='for all')
  parser.add_argument('--tiny', action='store_true', help='rehearsal on a CPU')
  parser.add_argument('--list', action='store_true', help='print the stages')
  return parser.parse_args(words)


def main(words: list[str]) -> int:
  """Runs the stages; exit code 0 if all that could be were measured."""
  flags = parse(words)
  stages = gpu_stages.make(tiny=flags.tiny, data=flags.data)
  if flags.only:
    stages = [s for s in stages if s.name in flags.only.split(',')]
  if flags.list:
    print(gpu_stages.listing(stages))
    return 0
  minutes = flags.minutes or (_TINY_MINUTES if flags.tiny else _MINUTES)
  out = pathlib.Path(flags.out)
  out.mkdir(parents=True, exist_ok=True)
  if flags.tiny:
    # Programs run once or twice: they compile in a third of the time.
    os.environ.setdefault('JAX_PLATFORMS', 'cpu')
    os.environ.setdefault('XLA_FLAGS', '--xla_backend_optimization_level=0')
  # Ends with a page, as at the end of a lease.
  signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
  state = run(
    stages,
    out,
    seconds=60 * minutes,
    factor=_TINY_FACTOR if flags.tiny else 1,
    trl_python=flags.trl_python,
    about={'tiny': flags.tiny, 'way': flags.way, 'minutes': minutes},
  )
  print(gpu_page.page(state))
  bad = ('failed', 'cut off', 'not started')
  return int(any(s['status'] in bad for s in state['stages'].values()))


def run(
  stages: list[Stage],
  out: pathlib.Path,
  *,
  seconds: float,
  factor: float = 1.0,
  trl_python: str = '',
  about: dict[str, Any] | None = None,
  tick: float = 1.0,
) -> dict[str, Any]:
  """Runs stages in order until the time is over; returns the JSON's content.

  Args:
    stages: commands with their budgets.
    out: folder of the JSON and the page.
    seconds: for all stages together.
    factor: multiplies each budget.
    trl_python: interpreter that has TRL; '' is this one.
    about: entries at the top of the JSON.
    tick: seconds between two looks at a running stage.
  """
  deadline = time.monotonic() + seconds
  waiting = {'status': 'not started', 'line': 'the time was over'}
  state = {
    **(about or {}),
    'commit': environment.commit(),
    'stages': {
      s.name: {'title': s.title, 'kind': s.kind, **waiting} for s in stages
    },
  }
  (out / _LOG).unlink(missing_ok=True)
  with tempfile.TemporaryDirectory() as scratch:
    for stage in stages:
      left = deadline - time.monotonic()
      if left < _LEAST * factor:
        break
      _run(
        stage,
        state['stages'][stage.name],
        pathlib.Path(scratch),
        budget=min(stage.seconds * factor, left),
        more={'peak_tflops': _peak(state), 'trl_python': trl_python},
        tick=tick,
        save=lambda: _save(out, state),
        out=out,
      )
  _save(out, state)
  return state


def _run(
  stage: Stage,
  entry: dict[str, Any],
  scratch: pathlib.Path,
  *,
  budget: float,
  more: dict[str, Any],
  tick: float,
  save: Callable[[], None],
  out: pathlib.Path,
) -> None:
  """Runs one stage; fills its entry and saves while it runs."""
  path = scratch / f'{stage.name}.json'
  words = gpu_stages.command(stage, sys.executable, str(path), **more)
  entry |= {'status': 'running', 'line': '', 'command': _shown(stage)}
  save()
  print(f'{stage.name}: at most {budget:.0f} s', file=sys.stderr, flush=True)
  began, seen = time.monotonic(), 0
  with (scratch / f'{stage.name}.log').open('w+b') as log:
    process = subprocess.Popen(
      words,
      cwd=ROOT,
      stdout=log,
      stderr=subprocess.STDOUT,
      env=_environ(scratch),
      start_new_session=True,
    )
    try:
      while process.poll() is None:
        if time.monotonic() - began > budget:
          break
        changed = path.stat().st_mtime_ns if path.exists() else 0
        if changed != seen:
          seen = changed
          entry['result'] = _read(path)
          save()
        time.sleep(tick)
      code = process.poll()
    finally:
      # Also when this process is told to end.
      _stop(process)
      log.seek(0)
      text = log.read()
      last = _last_line(text)
      with (out / _LOG).open('ab') as kept:
        kept.write(f'== {stage.name}\n'.encode() + text + b'\n')
      entry['result'] = _read(path)
      entry['seconds'] = round(time.monotonic() - began, 1)
      entry['status'], entry['line'] = 'cut off', ''
      save()
  entry['status'], entry['line'] = _judge(code, last, entry['result'])
  save()


def _shown(stage: Stage) -> str:
  """The command as a page shows it, without this machine's paths."""
  words = gpu_stages.command(stage, 'python', 'FILE', trl_python='PYTHON')
  return ' '.join(words)


def _judge(code: int | None, last: str, result: Any) -> tuple[str, str]:
  """Returns how a stage ended, and a line on why."""
  if code == 0:
    return 'done', ''
  if code is None:
    return 'cut off', last
  if code == 2:
    return 'not possible', last  # a refusal: exit code 2 and one line
  if result:
    failed = result.get('failed') or {}
    lines = [f'{name}: {line}' for name, line in failed.items()]
    return 'incomplete', '; '.join(lines) or last
  return 'failed', last


def _stop(process: subprocess.Popen) -> None:
  """Ends a stage and what it started."""
  for number in (signal.SIGTERM, signal.SIGKILL):
    try:
      os.killpg(process.pid, number)
    except ProcessLookupError:
      pass
    try:
      process.wait(_GRACE)
    except subprocess.TimeoutExpired:
      continue
    if number == signal.SIGKILL or not _has_group(process.pid):
      return


def _has_group(number: int) -> bool:
  try:
    os.killpg(number, 0)
  except ProcessLookupError:
    return False
  return True


def _environ(scratch: pathlib.Path) -> dict[str, str]:
  """The environment of a stage: programs that several compile are kept."""
  path = os.pathsep.join(
    filter(None, [str(ROOT), os.environ.get('PYTHONPATH')])
  )
  return {
    'JAX_COMPILATION_CACHE_DIR': str(scratch / 'compiled'),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0.3',
    'XLA_PYTHON_CLIENT_MEM_FRACTION': '.92',
    **os.environ,
    'PYTHONPATH': path,
    'PYTHONUNBUFFERED': '1',
  }


def _read(path: pathlib.Path) -> dict[str, Any]:
  try:
    return files.read_json_or_none(path) or {}
  except files.InputError:  # cut off while it wrote
    return {}


def _last_line(text: bytes) -> str:
  lines = text.decode(errors='replace').strip().splitlines()
  return lines[-1][:300] if lines else 'it said nothing'


def _peak(state: dict[str, Any]) -> float:
  """TFLOP/s that MFU refers to; 0 until the machine is known."""
  return (
    state['stages']
    .get('machine', {})
    .get('result', {})
    .get('sheet_tflops', 0.0)
  )


def _save(out: pathlib.Path, state: dict[str, Any]) -> None:
  files.write_json(out / 'gpu_check.json', state)
  with files.atomic_file(out / 'gpu_check.md') as file:
    file.write((gpu_page.page(state) + '\n').encode())


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
