"""The folder of a run: config.json, env.json, per_example/, samples/, DONE.

Comes in: a workdir path and the resolved config. Goes out: a folder that holds
one run of one config, new or continued, or one line that says why not. Every
file is written whole or not at all. Writes no metrics (writers.py) and no
checkpoints (checkpoints.py).
"""

import contextlib
import json
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

from dpo_jax import errors
from dpo_jax.storage import (
  buckets,
  environment,
  example_file,
  files,
  leftovers,
  places,
  run_lock,
)
from dpo_jax.types import InputError

_FIX = 'put back a copy, or give another --workdir'


class RunDir:
  """The folder of one run. Making the object touches nothing on disk.

  Args:
    path: the workdir.
    may_change: dotted keys ('train.num_steps') or sections ('log') of the
      config in which a continued run may differ. config.json then takes the
      new values, and a DONE of the old ones no longer counts.
    complete: fills in the keys that a config lacks, for configs of other
      versions.
    writes: False: another process owns the folder, this one only reads.
  """

  def __init__(
    self,
    path: str | os.PathLike,
    *,
    may_change: Collection[str] = (),
    complete: Callable[[Mapping], Mapping] = lambda config: config,
    writes: bool = True,
  ):
    """Names the parts of the folder."""
    self.path = files.absolute(path)
    self.checkpoints = self.path / 'checkpoints'
    self.cache_dir = self.path / 'cache'
    self._may_change = frozenset(may_change)
    self._complete = complete
    self._writes = writes
    # While this process writes here.
    self._lock: run_lock.Lock | None = None
    self._began = False  # whether create_or_continue succeeded

  def config(self) -> dict[str, Any]:
    """Reads config.json; InputError if the folder is no run."""
    config = self._read('config.json')
    if config is None:
      raise errors.refuse(
        self.path, 'not a run (no config.json)', 'give the --workdir of a run'
      )
    return config

  def config_or_none(self) -> dict[str, Any] | None:
    """Reads config.json; None if the folder is no run."""
    return self._read('config.json')

  def check(self, config: Mapping[str, Any]) -> bool:
    """Returns whether the folder holds a run of this config to continue.

    Args:
      config: the resolved config, of JSON types (tuples become lists).

    Raises:
      InputError: the workdir is a file, holds another config, or links.
    """
    places.refuse_strange(self.path)
    before = self._read('config.json')
    if before is not None:
      self.refuse_differences(
        before,
        config,
        'holds a run of another config',
        'give a new --workdir, or the values that are there',
      )
    return before is not None

  def refuse_differences(
    self,
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    problem: str,
    fix: str,
    where: Any = None,
    may_change: Collection[str] = (),
  ) -> None:
    """Raises InputError naming the first keys in which two configs differ.

    Args:
      before: the config on disk.
      now: the config in use; values as in `check`.
      problem: in words, before the keys with both values.
      fix: in words.
      where: the file or folder of `before`; None = the run's config.json.
      may_change: further keys that do not count.
    """
    allowed = self._may_change | {*may_change}
    lines = self.differences(before, now, allowed)
    if lines:
      more = f' (and {len(lines) - 3} more)' if len(lines) > 3 else ''
      where = where or self.path / 'config.json'
      raise errors.refuse(
        where, f'{problem}: {"; ".join(lines[:3])}{more}', fix
      )

  @contextlib.contextmanager
  def as_it_was(self) -> Iterator[None]:
    """Removes what a refused command added, unless it began the run.

    Within it, `create_or_continue` is where a run begins. Only if no
    other process is writing here: what is new may be its files.
    """
    missing = [p for p in (self.path, *self.path.parents) if not p.exists()]
    before = set(self._entries())
    try:
      yield
    except InputError:
      if self._writes and not self._began and self._can_lock():
        with contextlib.suppress(OSError):
          self._lock.discard()
          for path in [p for p in self._entries() if p not in before]:
            files.remove(path)
          self.close()
          for folder in missing:
            folder.rmdir()
      raise

  def _entries(self) -> Iterator[files.AnyPath]:
    """Yields what the folder and its caches hold, the deepest first."""
    for folder in (
      self.cache_dir / 'tokens',
      self.cache_dir / 'reference',
      self.cache_dir,
      self.path,
    ):
      with contextlib.suppress(OSError):
        yield from list(folder.iterdir())

  def _can_lock(self) -> bool:
    """Locks the folder if it exists and no other process has it."""
    with contextlib.suppress(InputError):
      self.lock()
      return True
    return False

  def lock(self) -> None:
    """Makes the folder, and keeps other processes from writing in it.

    Raises:
      InputError: it cannot be made, or another process is writing there.
    """
    if self._lock is None and self._writes:
      with files.storage_errors(self.path):
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = run_lock.take(self.path)
      if not isinstance(self.path, buckets.Path):
        for name in ('', 'per_example', 'samples', 'evaluate'):
          leftovers.remove(self.path / name)

  def create_or_continue(self, config: Mapping[str, Any]) -> bool:
    """Makes the folder and config.json, or continues the run in it.

    Args:
      config: as in `check`.

    Returns:
      Whether the folder held the run before.

    Raises:
      InputError: as `check`; or the workdir cannot be written, or another
        process is writing it. Nothing new is left behind.
    """
    continued, config = self.check(config), files.as_json(config)
    if not self._writes:
      return continued
    # Folders that a failure has to remove again, deepest first.
    made = [p for p in (self.path, *self.path.parents) if not p.exists()]
    try:
      self.lock()
      with files.storage_errors(self.path):
        if not continued or self.config() != config:
          files.write_json(self.path / 'config.json', config)
    except BaseException:
      self.close()
      with contextlib.suppress(OSError):
        if made:
          files.remove(self.path / '.lock')
        for folder in made:
          folder.rmdir()
      raise
    self._began = True
    return continued

  def is_done(self, config: Mapping[str, Any] | None = None) -> bool:
    """Returns whether a run of `config` (None: config.json's) ended here.

    A prolonged run keeps the DONE of its old config, which no longer counts.
    An empty DONE, a mark by hand, counts for every config.
    """
    # Reading config.json is an error without a run; asking for DONE is not.
    if not (self.path / 'DONE').exists():
      return False
    if not (facts := self.done_facts()):
      return True
    stored = self.config()
    if config is not None and self.differences(stored, config, ()):
      return False
    return facts['config'] == files.digest(stored)

  def differences(
    self,
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    may_change: Collection[str] | None = None,
  ) -> list[str]:
    """Returns a line per key in which two configs differ, with both values.

    Keys that one of them lacks are filled in first.

    Args:
      before: nested values.
      now: nested values.
      may_change: keys or sections that do not count; None = the object's own.
    """
    may_change = self._may_change if may_change is None else may_change
    complete = [files.as_json(self._complete(x)) for x in (before, now)]
    return _differences(*complete, may_change)

  def done_facts(self) -> dict[str, Any]:
    """Reads what `mark_done` wrote; {} if it did not, or DONE is empty."""
    path = self.path / 'DONE'
    try:
      text = files.read_text(path, fix=_FIX)
    except FileNotFoundError:
      return {}
    facts = files.parse_json(text, path, fix=_FIX) if text else {}
    if text and 'config' not in facts:
      raise errors.refuse(path, 'no config in it', 'remove it: the run goes on')
    return facts

  def mark_done(self, **facts: Any) -> None:
    """Writes DONE: the config's digest and JSON facts (last step, ...)."""
    if not self._writes:
      return
    config = files.digest(self.config())
    files.write_json(self.path / 'DONE', {'config': config} | facts)

  def write_env(
    self, fingerprints: Mapping[str, Any], argv: Iterable[str] | None = None
  ) -> list[str]:
    """Writes env.json; a continued run appends itself under 'continued'.

    Args:
      fingerprints: of data, tokenizer and model, as JSON types.
      argv: the command; None takes this process's.

    Returns:
      One line per difference between the first session and a later one that
      voids a claim of equal bits.
    """
    if not self._writes:
      return []
    now = environment.describe(fingerprints, argv)
    first = self.env()
    if not first:
      files.write_json(self.path / 'env.json', now)
      return []
    # The first session is what the run's claim of equal bits rests on.
    first.setdefault('continued', []).append(now)
    files.write_json(self.path / 'env.json', first)
    lines = [environment.changes(first, later) for later in first['continued']]
    return list(dict.fromkeys(line for session in lines for line in session))

  def env(self) -> dict[str, Any]:
    """Reads env.json, the first session's; {} if there is none."""
    env = self._read('env.json') or {}
    environment.check(env, self.path / 'env.json', _FIX)
    return env

  def write_per_example(self, name: str, arrays: Mapping[str, Any]) -> None:
    """Writes per_example/<name>.npz.

    Args:
      name: file name without its suffix, such as 'eval_100'.
      arrays: see example_file.write.
    """
    if self._writes:
      example_file.write(self.path / 'per_example' / f'{name}.npz', arrays)

  def write_evaluation(
    self, name: str, facts: Mapping[str, Any], arrays: Mapping[str, Any]
  ) -> str:
    """Writes evaluate/<name>.json and per_example/<name>.npz.

    Another evaluation of that name, of other records or another step, stays:
    then the name is followed by the step and a digest of the records.

    Args:
      name: a file name without its suffix.
      facts: JSON values; `step` and `records` tell evaluations apart.
      arrays: as for `write_per_example`.

    Returns:
      The path of the JSON file.
    """
    folder = self.path / 'evaluate'
    before = files.read_json_or_none(folder / f'{name}.json', fix=_FIX)
    own = facts['step'], facts['records']
    if before and (before.get('step'), before.get('records')) != own:
      name = f'{name}-step_{own[0]}-{own[1][:8]}'
    path = folder / f'{name}.json'
    if not self._writes:
      return str(path)
    # Values first: where the JSON is, they are.
    self.write_per_example(name, arrays)
    with files.storage_errors(path):
      files.write_json(path, {'name': name} | dict(facts))
    return str(path)

  def write_samples(self, name: str, samples: Iterable[Mapping]) -> str:
    """Writes samples/<name>.jsonl, one object per line; returns its path.

    An older file of that name with other content stays: the new one is then
    <name>_2.jsonl, and so on.
    """
    content = b''.join(json.dumps(s).encode() + b'\n' for s in samples)
    folder, number = self.path / 'samples', 1
    path = folder / f'{name}.jsonl'
    if not self._writes:
      return str(path)
    with files.storage_errors(path):
      while path.exists() and path.read_bytes() != content:
        number += 1
        path = folder / f'{name}_{number}.jsonl'
      with files.atomic_file(path) as file:
        file.write(content)
    return str(path)

  def confirm(self) -> None:
    """Makes sure that this process still has the lock.

    Raises:
      InputError: it was silent for so long that another process has it.
    """
    if self._lock:
      self._lock.confirm()

  def close(self) -> None:
    """Gives up the lock, so that another process may write here."""
    if self._lock:
      self._lock.close()
      self._lock = None

  def _read(self, name: str) -> dict[str, Any] | None:
    """Reads a JSON file of the folder; None if there is no such file."""
    return files.read_json_or_none(self.path / name, fix=_FIX)


def _differences(
  before: Mapping, now: Mapping, may_change: Collection[str]
) -> list[str]:
  """Returns a line per key that differs, except keys that may change."""
  before, now = files.flatten(before), files.flatten(now)
  keys = list(now) + [key for key in before if key not in now]
  lines = []
  for key in keys:
    parts = key.split('.')
    # 'train.num_steps' may be allowed by its own name or by 'train'.
    heads = {'.'.join(parts[:i]) for i in range(1, len(parts) + 1)}
    was, now_is = before.get(key, 'absent'), now.get(key, 'absent')
    if not _equal(was, now_is) and not heads & set(may_change):
      lines.append(
        f'config.{key} is {json.dumps(was)} there and {json.dumps(now_is)} now'
      )
  return lines


def _equal(a: Any, b: Any) -> bool:
  """Compares JSON values: NaN equals NaN, 1 equals 1.0, true is not 1."""
  # Python holds True == 1.
  if isinstance(a, bool) or isinstance(b, bool):
    return a is b
  return a == b or json.dumps(a) == json.dumps(b)
