"""Environment and flags -> the processes of one run, and what they agree on.

Comes in: --distributed and its flags, and the variables that Slurm, GKE and
Cloud TPU set. Goes out: `jax.distributed` started, or a process by itself;
which process is the first, the one that owns all files but its shards of a
checkpoint; and agreement: actions whose errors end all processes alike.

Everything here does nothing special in a process by itself. Messages go through
the key-value store of jax's coordinator, never through devices: a process that
waits here hears when another one is gone.
"""

import importlib.util
import json
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from dpo_jax import errors
from dpo_jax.config import modes
from dpo_jax.run import preemption, watch, watchdog
from dpo_jax.run.preemption import Diverged, Preempted
from dpo_jax.storage import files
from dpo_jax.types import InputError

FLAGS = tuple(modes.PROCESS_FLAGS)
WORDS = ('auto', 'on', 'off')  # of --distributed
HEARTBEAT = 'DPO_JAX_HEARTBEAT'  # environment variable: seconds
_HEARTBEAT_DEFAULT = 100.0
_PREFIX = 'dpo_jax'  # of every name in the store
_WAIT = 1.0  # seconds between two looks for a fault, while waiting
# Errors of devices that are this process's own.
_OWN = ('RESOURCE_EXHAUSTED', 'INVALID_ARGUMENT', 'UNIMPLEMENTED')
_EXPECTED = (InputError, Diverged)


class Cluster(NamedTuple):
  """How this process joins the others; None = jax finds it out."""

  coordinator: str | None = None  # HOST:PORT of the first process
  count: int | None = None
  rank: int | None = None
  devices: list[int] | None = None  # local numbers of its devices


class _Group:
  """The processes that this one has joined."""

  def __init__(self, client: Any, rank: int, count: int, heartbeat: float):
    self.client, self.rank, self.count = client, rank, count
    self.watch = watch.Watch(self._store(), rank, count, heartbeat)
    self.names = 0  # of agreements so far, equal in all processes

  def _store(self) -> watch.Store:
    """jax's key-value store, with names of this package."""

    def put(name, value):
      try:
        self.client.key_value_set(f'{_PREFIX}/{name}', value)
      except Exception as error:
        # Somebody's value is there already.
        if 'ALREADY_EXISTS' not in str(error):
          raise

    def put_over(name, value):
      self.client.key_value_set(f'{_PREFIX}/{name}', value, True)

    def get(name, seconds):
      try:
        return self.client.blocking_key_value_get(
          f'{_PREFIX}/{name}', int(seconds * 1000)
        )
      except Exception as error:
        if 'DEADLINE_EXCEEDED' not in str(error):
          raise
        return None

    def everything(name):
      entries = self.client.key_value_dir_get(f'{_PREFIX}/{name}/')
      return {key.rpartition('/')[2]: value for key, value in entries}

    return watch.Store(put, put_over, get, everything)

  def wait(self, name: str) -> str:
    """Returns a value once it is there; raises if a process failed."""
    while True:
      self.watch.check()
      value = self._store().get(name, _WAIT)
      if value is not None:
        return value

  def agree(self, word: str) -> list[str]:
    """Returns the words of all processes, by rank, once all have said theirs.

    The first process collects them: the others get what it got.
    """
    self.names += 1
    name, store = f'agreed/{self.names}', self._store()
    if self.rank:
      store.put(f'{name}/{self.rank}', word)
      return _parse(self.wait(f'{name}/all'))
    words = [word]
    words += [self.wait(f'{name}/{rank}') for rank in range(1, self.count)]
    store.put(f'{name}/all', json.dumps({'value': words}))
    return words


def _parse(text: str) -> Any:
  """The value that was sent as JSON."""
  return files.parse_object(text)['value']


_joined: list[_Group] = []  # at most one: jax joins once in a process


def check_flags(given: Mapping[str, Any]) -> None:
  """Refuses values of the flags that nobody can join by."""
  word = given.get('distributed', 'auto')
  if word not in WORDS:
    raise errors.refuse(
      '--distributed',
      f'{word!r} is not allowed',
      f'{errors.did_you_mean(word, WORDS)}use one of {", ".join(WORDS)}',
    )
  bare = [flag for flag in FLAGS[1:] if flag in given]
  if bare and word == 'off':
    raise errors.refuse(
      f'--{bare[0]}', 'is not used by --distributed=off', 'leave it out'
    )
  missing = [flag for flag in FLAGS[1:] if flag not in given]
  if bare and missing:
    raise errors.refuse(
      f'--{missing[0]}',
      f'is missing, --{bare[0]} needs it',
      'give --coordinator_address=HOST:PORT --num_processes=N --process_id=I',
    )
  for flag in FLAGS[2:]:
    if not str(given.get(flag, '0')).isdecimal():
      raise errors.refuse(
        f'--{flag}', f'{given[flag]!r} is not allowed', 'use a whole number'
      )
  if bare and int(given['process_id']) >= int(given['num_processes']):
    raise errors.refuse(
      '--process_id',
      f'{given["process_id"]!r} of {given["num_processes"]} processes',
      'use a number from 0 to one below --num_processes',
    )
  if bare and not given['coordinator_address'].rpartition(':')[2].isdecimal():
    raise errors.refuse(
      '--coordinator_address',
      f'{given["coordinator_address"]!r} has no port',
      'use HOST:PORT of the first process, such as 10.0.0.1:8476',
    )


def find(
  given: Mapping[str, Any], environ: Mapping[str, str] = os.environ
) -> Cluster | None:
  """Returns how to join the other processes; None if there are none.

  Args:
    given: the flags, checked.
    environ: variables of the process.
  """
  if given.get('distributed') == 'off':
    return None
  if 'coordinator_address' in given:
    return Cluster(
      given['coordinator_address'],
      int(given['num_processes']),
      int(given['process_id']),
      # Not detected: in a Slurm job jax would take one device per process.
      _slurm_devices(environ),
    )
  slurm = ('SLURM_JOB_ID', 'SLURM_STEP_NODELIST', 'SLURM_PROCID')
  if all(name in environ for name in slurm) and 'SLURM_LOCALID' in environ:
    if int(environ.get('SLURM_NTASKS', 1)) > 1:
      return Cluster(devices=_slurm_devices(environ))
  elif _on_tpu(environ) or _on_kubernetes(environ):
    return Cluster()
  return Cluster() if given.get('distributed') == 'on' else None


def _slurm_devices(environ: Mapping[str, str]) -> list[int] | None:
  """All GPUs of a node for its only task; None leaves the choice to jax.

  jax takes one device per Slurm task, also where a task has a whole node.
  """
  tasks = environ.get('SLURM_STEP_TASKS_PER_NODE', '')
  gpus = environ.get('SLURM_GPUS_ON_NODE', '')
  alone = tasks == '1' or tasks.startswith(('1(', '1,'))
  return list(range(int(gpus))) if alone and gpus.isdecimal() else None


def _on_tpu(environ: Mapping[str, str]) -> bool:
  """Whether a TPU is here: on GKE told by variables, else by its chips."""
  if environ.get('JAX_PLATFORMS', 'tpu').split(',')[0] != 'tpu':
    return False
  names = environ.get('TPU_PROCESS_ADDRESSES') or environ.get(
    'TPU_WORKER_HOSTNAMES', ''
  )
  if names:
    return ',' in names
  if importlib.util.find_spec('libtpu') is None:
    return False
  return any(os.path.exists(path) for path in ('/dev/accel0', '/dev/vfio/0'))


def _on_kubernetes(environ: Mapping[str, str]) -> bool:
  """Whether this is a pod of an indexed Job, whose others jax can find."""
  is_pod = {'KUBERNETES_SERVICE_HOST', 'JOB_COMPLETION_INDEX'} <= {*environ}
  return is_pod and importlib.util.find_spec('kubernetes') is not None


def heartbeat(environ: Mapping[str, str] = os.environ) -> float:
  """Seconds of silence after which a process is lost, of $DPO_JAX_HEARTBEAT."""
  text = environ.get(HEARTBEAT) or str(_HEARTBEAT_DEFAULT)
  try:
    seconds = float(text)
  except ValueError:
    seconds = 0.0
  if not 2 <= seconds <= 86400:
    raise errors.refuse(
      f'${HEARTBEAT}',
      f'{text!r} is not allowed',
      'use a number of seconds from 2 to 86400',
    )
  return seconds


def join(cluster: Cluster) -> None:
  """Joins the other processes; from here on the first one speaks for all.

  Raises:
    InputError: there is no cluster that jax knows, or the first process does
      not answer.
  """
  import jax
  from jax._src import distributed  # its key-value store has no public name

  seconds = heartbeat()
  # SIGTERM is ours: watch.py hears it.
  jax.config.update('jax_enable_preemption_service', False)
  try:
    jax.distributed.initialize(
      cluster.coordinator,
      cluster.count,
      cluster.rank,
      cluster.devices,
      # Later than ours: jax's own end has no exit code and no fix.
      heartbeat_timeout_seconds=int(2 * seconds) + 10,
      shutdown_timeout_seconds=int(seconds) + 1,
    )
  except (ValueError, RuntimeError) as error:
    why = ' '.join(str(error).split())[:160]
    raise errors.refuse(
      '--distributed',
      f'the processes did not find each other ({why})',
      'start all of them, or give --coordinator_address=HOST:PORT '
      '--num_processes=N --process_id=I',
    ) from error
  state = distributed.global_state
  if state.num_processes < 2:
    return
  group = _Group(state.client, state.process_id, state.num_processes, seconds)
  _joined.append(group)
  watchdog.join(group.watch)
  group.watch.start()
  preemption.listen(group.watch.poll)
  if group.rank:
    # One voice: every line of the package is printed by the first process.
    sys.stdout = open(os.devnull, 'w')


def is_first() -> bool:
  """Whether this process owns the files and the messages of a run."""
  return not _joined or _joined[0].rank == 0


def count() -> int:
  """Returns the number of processes that work together."""
  return _joined[0].count if _joined else 1


def together(action: Callable[[], Any]) -> Any:
  """Runs an action in every process; an error of one is an error of all.

  For what each process does by itself, such as reading files: polls in it need
  not be equal in number, and no device of another process is used.

  Raises:
    InputError, Diverged, Preempted: of the action here, or in the process of
      the lowest rank that had one.
  """
  if not _joined:
    return action()
  group, result, own = _joined[0], None, None
  try:
    result = group.watch.local(action)
  except (InputError, Diverged, Preempted) as error:
    own = error
  words = group.agree('' if own is None else watch.to_text(_fault(own)))
  bad = next((rank for rank, word in enumerate(words) if word), None)
  if bad is None:
    return result
  # All raise the same, and so one line is printed.
  raise own if bad == group.rank else watch.from_text(words[bad]).error()


def first_then_all(action: Callable[[], Any]) -> Any:
  """Runs an action in the first process, then in the others.

  For what is made once and then found on disk; where processes share no disk,
  each makes it by itself.
  """
  if not _joined:
    return action()
  result = together(action if is_first() else lambda: None)
  again = together((lambda: None) if is_first() else action)
  return result if is_first() else again


def of_first(value: Any) -> Any:
  """Returns the first process's value, of JSON types, in every process."""
  if not _joined:
    return value
  group = _joined[0]
  return _parse(group.agree(json.dumps({'value': value}))[0])


def all_true(value: bool) -> bool:
  """Whether a value is true in every process."""
  if not _joined:
    return value
  return all(word == '1' for word in _joined[0].agree(str(int(value))))


def leave(code: int, line: str = '') -> int:
  """Ends what was joined, after all processes came here with this code.

  Args:
    code: the exit code.
    line: for stderr, printed by the first process; '' = none.

  Returns:
    The code.
  """
  if line and is_first():
    print(line, file=sys.stderr)
  if not _joined:
    return code
  group = _joined[0]
  group.agree(str(code))
  group.watch.end()
  _joined.clear()
  import jax

  try:
    jax.distributed.shutdown()
  except RuntimeError as error:
    print(f'the processes did not end together: {error}', file=sys.stderr)
  return code


def fail(error: Exception) -> None:
  """Ends all processes with an error of this one; alone, it does nothing.

  An error that is none of the expected ends prints its traceback. If it comes
  of another process that is gone, that process is named in its place.
  """
  if not _joined:
    return
  import jax

  group = _joined[0]
  # Devices that wait for a lost process fail before its silence is long enough
  # to tell.
  text, may_be = str(error), isinstance(error, jax.errors.JaxRuntimeError)
  if may_be and not any(word in text for word in _OWN):
    group.watch.wait_for_fault()
  if group.watch.fault is None:
    if not isinstance(error, (*_EXPECTED, preemption.Lost, Preempted)):
      traceback.print_exception(error)
    group.watch.fail(_fault(error))
  sys.stdout.flush()
  group.watch.exit()


def _fault(error: BaseException) -> watch.Fault:
  """The fault that an exception of this process is to all."""
  rank = _joined[0].rank
  if isinstance(error, Preempted):
    return watch.Fault(rank, error.exit_code, str(error))
  if isinstance(error, _EXPECTED):
    code = error.exit_code if isinstance(error, InputError) else 1
    return watch.Fault(rank, code, str(error))
  line = f'process {rank}: {type(error).__name__}: {error}'.splitlines()[0]
  return watch.Fault(rank, 1, f'{line}; its traceback is above')
