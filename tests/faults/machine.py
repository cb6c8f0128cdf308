"""Real processes to hurt: started, watched, killed, and what they left.

The package is imported once, in this process, which never touches a device;
every command is a fork of it, a process of its own with its own devices. That
saves the seconds of the import, and hides no state: a fork that has not begun
knows nothing of the others. What is on disk is read in forks as well.
"""

import json
import os
import pathlib
import re
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / 'tests'))
import xla_flags  # noqa: E402

EXPERIMENT = f'{ROOT}/experiments/quickstart.py:stage=dpo,runlocal'
LIMIT = 300  # seconds after which a process counts as hung
# A model and rows so small that a step takes milliseconds.
SMALL = {
  'data.max_length': 64,
  'data.eval_pairs': 8,
  'train.batch_size': 4,
  'train.num_steps': 8,
  'train.save_every': 1,
  'train.eval_every': 4,
  'train.keep_checkpoints': 99,
  'optim.learning_rate': 1e-3,
}
_FLAGS = ' '.join(
  [*xla_flags.QUICK, '--xla_force_host_platform_device_count={}']
)


class Child:
  """A forked process."""

  def __init__(self, pid: int, out: pathlib.Path):
    """Takes its number and the file of its output."""
    self.pid, self.out, self.code = pid, out, None

  def poll(self) -> int | None:
    """Returns its exit code, negative for a signal; None = it runs."""
    if self.code is None:
      pid, status = os.waitpid(self.pid, os.WNOHANG)
      if pid:
        self.code = os.waitstatus_to_exitcode(status)
    return self.code

  def wait(self, seconds: float = LIMIT) -> int:
    """Returns its exit code; -9 after so many seconds, and it is killed."""
    until = time.monotonic() + seconds
    while self.poll() is None:
      if time.monotonic() > until:
        self.kill(signal.SIGKILL)
      time.sleep(0.02)
    return self.code

  def kill(self, number: int) -> None:
    """Sends a signal, if it still runs."""
    if self.poll() is None:
      os.kill(self.pid, number)

  def stop(self) -> None:
    """Stops it; returns once none of its threads runs, or it has ended."""
    self.kill(signal.SIGSTOP)
    tasks = pathlib.Path(f'/proc/{self.pid}/task')
    while self.poll() is None:
      try:
        states = [x.read_text() for x in tasks.glob('*/stat')]
      except (FileNotFoundError, ProcessLookupError):
        continue  # a thread that ended
      if all(text.rpartition(')')[2].split()[0] == 'T' for text in states):
        return
      time.sleep(0.001)

  def text(self) -> str:
    """Returns what it printed so far, both streams."""
    return self.out.read_text(errors='replace')


def load(cache: str) -> None:
  """Imports what commands import; they share a cache of compiled programs."""
  os.environ['JAX_PLATFORMS'] = 'cpu'
  os.environ['DPO_JAX_CACHE'] = cache
  # Before jax is imported, which reads them once.
  os.environ['JAX_COMPILATION_CACHE_DIR'] = f'{cache}/compiled'
  os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.05'
  os.environ['JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES'] = '-1'
  import dpo_jax.main
  import dpo_jax.run.evaluate
  import dpo_jax.run.replay
  import dpo_jax.train  # noqa: F401


def fork(
  action: Callable[[], int],
  out: pathlib.Path,
  devices: int = 1,
  env: Mapping[str, str] | None = None,
) -> Child:
  """Starts a process that runs an action and ends with its exit code."""
  out.parent.mkdir(parents=True, exist_ok=True)
  sys.stdout.flush()
  sys.stderr.flush()
  pid = os.fork()
  if pid:
    return Child(pid, out)
  code = 1
  try:
    file = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.environ['XLA_FLAGS'] = _FLAGS.format(devices)
    os.environ.update(env or {})
    sys.stdout = open(1, 'w', buffering=1)
    sys.stderr = open(2, 'w', buffering=1)
    code = action()
  except BaseException:
    traceback.print_exc()
  finally:
    try:
      sys.stdout.flush()
    finally:
      os._exit(code or 0)


def flags(workdir: pathlib.Path, **changes: Any) -> list[str]:
  """The arguments of a small run; changes are keys with __ for the dot."""
  keys = SMALL | {k.replace('__', '.'): v for k, v in changes.items()}
  return [
    f'--config={EXPERIMENT}',
    f'--workdir={workdir}',
    *(f'--config.{key}={value}' for key, value in keys.items()),
  ]


def command(
  argv: Sequence[str],
  out: pathlib.Path,
  devices: int = 1,
  env: Mapping[str, str] | None = None,
  inject: Callable[[], None] | None = None,
) -> Child:
  """Starts `python -m dpo_jax.main ARGV`; inject plants a fault in it first."""

  def run() -> int:
    from dpo_jax import main

    sys.argv = ['main.py', *argv]
    if inject:
      inject()
    return main.main(list(argv))

  return fork(run, out, devices, env)


def one_line(code: int, text: str, name: str = '') -> str:
  """What is wrong with the end of a command that could not do its work.

  Args:
    code: of its exit.
    text: what it printed; its last line has a fix, and this name.
    name: of what was in its way.
  """
  if 'Traceback' in text:
    return f'a traceback: {text[text.index("Traceback") :][:300]}'
  last = text.splitlines()[-1] if text else ''
  if code not in (1, 2) or 'fix: ' not in last or name not in last:
    return f'exit {code}: {text[-300:]}'
  return ''


def after_save(step: int, act: Callable[[Any, Any], None]) -> None:
  """Plants act(run, state) behind the save of a step in this process."""
  from dpo_jax import train

  save = train.save

  def then_act(run, state, reference, at):
    save(run, state, reference, at)
    if at == step:
      act(run, state)

  train.save = then_act


def before_updates(change: Callable[[int, Any], Any]) -> None:
  """Plants state -> change(updates made, state) before each update."""
  from dpo_jax import train

  loop = train._loop

  def hurt_loop(run, state, reference, start):
    step, made = run.job.train_step, [start]

    def train_step(state, *rest):
      state = change(made[0], state)
      made[0] += 1
      return step(state, *rest)

    job = run.job._replace(train_step=train_step)
    return loop(run._replace(job=job), state, reference, start)

  train._loop = hurt_loop


def call(action: Callable[[], Any], seconds: float = LIMIT) -> Any:
  """Returns what an action returns in a process of its own; JSON types."""
  from dpo_jax.storage import files

  read, write = os.pipe()

  def run() -> int:
    with os.fdopen(write, 'w') as pipe:
      pipe.write(json.dumps({'value': action()}))
    return 0

  child = fork(run, pathlib.Path(os.devnull))
  os.close(write)
  with os.fdopen(read) as pipe:
    text = pipe.read()
  if child.wait(seconds):
    raise RuntimeError(f'reading what a run left failed: {action}')
  return files.parse_object(text)['value']


def steps(workdir: pathlib.Path) -> list[int]:
  """The committed steps on disk, by their names and marks."""
  found = []
  folder = workdir / 'checkpoints'
  for path in folder.iterdir() if folder.is_dir() else ():
    if path.name.isdigit() and (path / 'commit_success.txt').exists():
      found.append(int(path.name))
  return sorted(found)


def lines(workdir: pathlib.Path) -> list[dict]:
  """The whole lines of metrics.jsonl."""
  from dpo_jax.storage import files

  path = workdir / 'metrics.jsonl'
  text = path.read_text() if path.exists() else ''
  return [files.parse_object(x) for x in text.split('\n')[:-1]]


def last_step(workdir: pathlib.Path) -> int:
  """The last update in metrics.jsonl; 0 = none."""
  try:
    own = [x['step'] for x in lines(workdir) if x and x['split'] == 'train']
  except OSError:
    own = []
  return max(own, default=0)


def wait_for(workdir, step: int, child: Child, seconds: float = LIMIT) -> None:
  """Waits until a step is in metrics.jsonl, or the process ended."""
  until = time.monotonic() + seconds
  while last_step(workdir) < step and child.poll() is None:
    if time.monotonic() > until:
      raise TimeoutError(f'no step {step}: {child.text()[-2000:]}')
    time.sleep(0.01)


def numbers(workdir: pathlib.Path) -> dict[str, float]:
  """{step, split, name: value} of all metrics, rates excepted."""
  return {
    f'{line["step"]} {line["split"]} {name}': value
    for line in lines(workdir)
    for name, value in line.items()
    if not name.endswith('_per_second')
  }


def states(*workdirs: pathlib.Path) -> list[dict[str, str]]:
  """Per run {step: digest of its whole state}, 'unsound' if it is not."""

  def read() -> list[dict[str, str]]:
    return [_states(workdir) for workdir in workdirs]

  return call(read)


def _states(workdir: pathlib.Path) -> dict[str, str]:
  from dpo_jax import tree
  from dpo_jax.storage import checkpoints, files

  names = ('params', 'opt_state', 'loss_state', 'rng', 'data')
  found = {}
  with checkpoints.Checkpoints(workdir / 'checkpoints') as saved:
    for step in saved.steps():
      try:
        items = saved.restore(step, dict.fromkeys(names), partial=True).items
      except Exception as error:
        found[str(step)] = f'unsound: {error}'
        continue
      parts = [
        np.ascontiguousarray(leaf).tobytes()
        for _, leaf in tree.flatten_with_names(items)
      ]
      found[str(step)] = files.bytes_digest(parts)
  return found


def outcome(workdir: pathlib.Path) -> dict[str, Any]:
  """All that a run left that its numbers are: equal for equal runs."""
  from dpo_jax.storage import files

  examples = {}
  for path in sorted((workdir / 'per_example').glob('*.npz')):
    with files.load_arrays(path) as arrays:
      parts = [arrays[name].tobytes() for name in sorted(arrays.files)]
    examples[path.name] = files.bytes_digest(parts)
  done = workdir / 'DONE'
  return {
    'states': states(workdir)[0],
    'numbers': numbers(workdir),
    'examples': examples,
    'done': files.read_json(done) if done.exists() else None,
  }


def differences(one: dict[str, Any], other: dict[str, Any]) -> str:
  """What differs in two outcomes, '' if nothing does.

  Of the states only those that both have: one may have kept fewer.
  """
  bad = [k for k in ('numbers', 'examples', 'done') if one[k] != other[k]]
  both = one['states'].keys() & other['states'].keys()
  bad += [f'step {s}' for s in both if one['states'][s] != other['states'][s]]
  if max(one['states'], key=int) != max(other['states'], key=int):
    bad.append('the last step')
  return ', '.join(bad)


def copy(run: pathlib.Path, folder: pathlib.Path, at: int | None = None):
  """A run in another folder, as it was after step `at`; None = as it is."""
  shutil.copytree(run, folder, symlinks=True)
  (folder / '.lock').unlink(missing_ok=True)
  if at is not None:
    (folder / 'DONE').unlink(missing_ok=True)
    for path in (folder / 'checkpoints').iterdir():
      if path.name.isdigit() and int(path.name) > at:
        shutil.rmtree(path)
  return folder


def balances(text: str) -> bool | None:
  """Whether the ledger that a run printed adds up; None = it printed none."""
  match = re.search(r'^ledger: (\d+) rows read = (.*)$', text, re.M)
  if not match:
    return None
  parts = re.sub(r'\([^)]*\)', '', match[2]).split('+')
  return int(match[1]) == sum(int(p.split()[0]) for p in parts)


def cpu_seconds() -> float:
  """CPU seconds of this process and of those that ended."""
  both = resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN
  return sum(sum(resource.getrusage(who)[:2]) for who in both)
