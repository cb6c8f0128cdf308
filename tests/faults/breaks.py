"""Deliberate breaks: each on a copy of the code, where its line must show it.

Comes in: names of lines. Goes out: per line what was broken, and what its
small figure says then. A break is a replacement of one text that stands once
in one file; test_scorecard.py holds that it still does.
"""

import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from typing import NamedTuple

import machine
import page
import suites


class Break(NamedTuple):
  """A change of the code that a line must notice."""

  what: str  # in words
  path: str
  before: str
  after: str
  # Tests of the suite that must fail, or their files; () = what the line runs.
  tests: tuple[str, ...] = ()


BREAKS = {
  'R1': Break(
    'the step is not part of a restored state',
    'dpo_jax/storage/state_items.py',
    "    step=items['rng']['step'],",
    "    step=items['rng']['step'] + 1,",
  ),
  'R2': Break(
    'the running mean of a loss begins anew',
    'dpo_jax/run/start.py',
    '  state = replay.with_skipped(job, state, trained.skipped)',
    '  state = replay.with_skipped(job, state, trained.skipped)\n'
    '  import jax\n'
    '  state = state._replace(\n'
    '    loss_state=jax.tree.map(lambda x: x * 0, state.loss_state))',
  ),
  'R3': Break(
    'the step from which a run goes on is off by one on a part',
    'dpo_jax/run/start.py',
    '  return state, moved, restored.step',
    '  return state, moved, restored.step - 1',
  ),
  'R4': Break(
    'the flag of a signal is not polled',
    'dpo_jax/run/preemption.py',
    '    if self._received:\n      raise Preempted(self._received)',
    '    if self._received:\n      return',
  ),
  'R5': Break(
    'what Orbax prints beside a failed save is not filtered',
    'dpo_jax/storage/orbax_parts.py',
    "  logging.getLogger('absl').addFilter(not_from_orbax)\n",
    '  return\n',
  ),
  'R6': Break(
    'the bits of a checkpoint are not compared',
    'dpo_jax/tree.py',
    'def fingerprint(',
    'def fingerprint(tree):\n'
    '  return {name: 0 for name, _ in flatten_with_names(tree)}\n\n\n'
    'def _fingerprint(',
  ),
  'R7': Break(
    'no process is taken for lost',
    'dpo_jax/run/watch.py',
    '    for rank in self._silent():\n      self._lose(',
    '    for rank in ():\n      self._lose(',
  ),
  'R8': Break(
    'the second moment is not tested',
    'dpo_jax/train_step.py',
    '  is_bad = ~(largest < optim.MOST_MOMENT)',
    '  is_bad = largest < 0',
  ),
  'R9': Break(
    'a file that is not UTF-8 is not refused',
    'dpo_jax/storage/files.py',
    '  except (OSError, UnicodeDecodeError) as error:',
    '  except OSError as error:',
  ),
  'R10': Break(
    'unknown keys are not refused',
    'dpo_jax/config/load.py',
    '  if key not in known:\n    raise rules.unknown_key(key, known)',
    '  if key not in known:\n    return',
  ),
  'R11': Break(
    'a template may take any number of steps',
    'dpo_jax/data/text/budget.py',
    '    self.left -= STEP + units',
    '    self.left -= 0',
  ),
  'R12': Break(
    'the ledger is off by one',
    'dpo_jax/run/bookkeeping.py',
    "    'trained': reached,",
    "    'trained': reached + 1,",
  ),
  'R13': Break(
    'variables of JAX are not part of the environment',
    'dpo_jax/storage/environment.py',
    'name: _flag(jax.config, name) for name in _JAX_CONFIG',
    'name: _flag(jax.config, name) for name in ()',
  ),
  'R14': Break(
    'the counts of trained records are not restored',
    'dpo_jax/storage/state_items.py',
    "  counts = np.array(items['data']['trained'])",
    "  counts = np.array(items['data']['trained']) * 0",
  ),
  'R15': Break(
    'the fingerprints of a run are not compared',
    'dpo_jax/run/session.py',
    "  session.identity.expect(restored.meta.get('fingerprints', {}))",
    '  del restored',
    # Those of the line that a config or env.json cannot refuse.
    ('tests/run/test_identity_inputs.py::test_other_records_are_refused',),
  ),
}
# Breaks besides, of what one test of the suite holds: (line, break).
MORE = (
  (
    'R4',
    Break(
      'a signal is an Exception, which templates and parsers take for theirs',
      'dpo_jax/run/preemption.py',
      'class Preempted(BaseException):',
      'class Preempted(Exception):',
      ('tests/run/test_preemption.py',),
    ),
  ),
  (
    'R9',
    Break(
      'what the footer of a Parquet file claims is not looked at',
      'dpo_jax/data/sources/arrow.py',
      '      _check_groups(file.metadata, chosen, path)\n',
      '',
      ('tests/data/sources/test_arrow.py',),
    ),
  ),
  (
    'R7',
    Break(
      'a watchdog names its own process, whoever is waited for',
      'dpo_jax/run/watchdog.py',
      '    behind = group.behind()',
      '    behind = None',
      ('tests/run/test_watchdog.py',),
    ),
  ),
  (
    'R11',
    Break(
      'a link in a run is written through',
      'dpo_jax/storage/places.py',
      '      if path.is_symlink():',
      '      if False:',
      ('tests/storage/test_places.py',),
    ),
  ),
  (
    'R11',
    Break(
      'a regex of a tokenizer may take any time',
      'dpo_jax/data/text/hf_tokenizer.py',
      '        _SECONDS + size / _CHARACTERS,',
      '        1e9,',
      ('tests/data/text/test_hf_tokenizer.py',),
    ),
  ),
)


def run(names: list[str], writes: bool) -> int:
  """Breaks the code once per line, or more; returns 1 if one shows nothing."""
  unseen = 0
  for name, change in of(names):
    red, text = _seen(name, change)
    unseen += not red
    print(f'{name} {change.what}: {"red" if red else "NOT SEEN"}, {text}')
    sys.stdout.flush()
    if writes:
      page.write_break(
        name, change.what, f'{"red" if red else "GREEN"}: {text}'
      )
  return int(bool(unseen))


def of(names: Iterable[str]) -> list[tuple[str, Break]]:
  """Returns (line, break) of all breaks of these lines."""
  every = [*BREAKS.items(), *MORE]
  return [(name, change) for name, change in every if name in names]


def apply(change: Break, root: pathlib.Path) -> None:
  """Makes a break in a tree."""
  path = root / change.path
  text = path.read_text()
  if text.count(change.before) != 1:
    raise ValueError(f'{change.path}: {change.before!r} stands not once')
  path.write_text(text.replace(change.before, change.after))


def _seen(name: str, change: Break) -> tuple[bool, str]:
  """Whether the line notices its break, and what it says."""
  with tempfile.TemporaryDirectory(prefix='dpo_jax_break_') as top:
    root = pathlib.Path(top) / 'tree'
    root.mkdir()
    for part in ('dpo_jax', 'tests', 'experiments', 'scripts'):
      shutil.copytree(machine.ROOT / part, root / part, symlinks=True)
    for part in ('pyproject.toml', 'README.md'):
      shutil.copy(machine.ROOT / part, root / part)
    apply(change, root)
    tests = change.tests or suites.TESTS.get(name)
    if tests:
      faults, bad = suites.run(tests, root, first=True)
    else:
      faults, bad = _counted(name, root)
  first = ' '.join(bad[0].split())[:160].replace('|', '/') if bad else ''
  return bool(faults and bad), f'{len(bad)} violations of {faults} ({first})'


def _counted(name: str, root: pathlib.Path) -> tuple[int, list[str]]:
  """(faults, violations) of the line's own program on a broken tree."""
  path = root / 'counts.json'
  done = subprocess.run(
    [sys.executable, '-m', 'tests.faults', f'--only={name}']
    + [f'--json={path}'],
    cwd=root,
    capture_output=True,
    text=True,
  )
  if not path.exists():
    return 0, [done.stderr[-200:]]
  counts = json.loads(path.read_text())[name]
  return counts['faults'], counts['violations']
