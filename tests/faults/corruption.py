"""R6 corruption: bytes that are others than those written.

Comes in: a run and what it was made of: checkpoints, files of its folder,
weights it began with, data, caches. Goes out: after one of them is changed,
whether what is used is identical, or refused by name, or made anew.
"""

import json
import pathlib
import shutil
import sys

import machine
from score import Line

_INPUTS = 152  # faults in files that a run reads


def survives_corruption(line: Line) -> None:
  """R6: bytes that changed are refused by name, passed over, or harmless."""
  run = line.baseline()
  expected = machine.states(run)[0]
  count = line.pick(40, 800)
  while count:
    size = min(count, 50)
    count -= size
    seeds = [line.random.random() for _ in range(size)]
    found = machine.call(lambda s=seeds: [_flip(run, expected, x) for x in s])
    *first, last = found
    for what, problem in first:
      line.count(what, problem)
    line.fault(*last)
  if line.size == 'small':
    return
  whole = machine.outcome(run)
  names = ('config.json', 'env.json', 'metrics.jsonl', 'model.json')
  for name in names:
    for _ in range(12):
      line.fault(name, _edit(line, run, name, whole))
  _spoil_inputs(line)


def _flip(run: pathlib.Path, expected, seed: float) -> tuple[str, str]:
  """(what was done to a checkpoint, what is wrong with what is restored)."""
  import random
  import tempfile

  from dpo_jax import tree
  from dpo_jax.storage import checkpoints, files
  from dpo_jax.types import InputError

  dice = random.Random(seed)
  with tempfile.TemporaryDirectory() as top:
    folder = pathlib.Path(top) / 'checkpoints'
    shutil.copytree(run / 'checkpoints', folder)
    step = dice.choice(machine.steps(run)[-2:])
    listed = sorted(p for p in (folder / str(step)).rglob('*') if p.is_file())
    # Mostly numbers; the other files are as many, and small.
    large = sorted(listed, key=lambda p: -p.stat().st_size)[:8]
    path = dice.choice(dice.choice((large, large, listed)))
    what = _spoil(path, dice, listed)
    names = ('params', 'opt_state', 'loss_state', 'rng', 'data')
    what = f'{what} of {path.relative_to(folder)}'
    try:
      with checkpoints.Checkpoints(folder, log=lambda _: None) as saved:
        restored = saved.restore_latest(dict.fromkeys(names), partial=True)
    except InputError as error:
      return what, '' if str(folder) in str(error) else f'unnamed: {error}'
    except Exception as error:
      return what, f'{type(error).__name__}: {error}'
    import numpy as np

    parts = [
      np.ascontiguousarray(leaf).tobytes()
      for _, leaf in tree.flatten_with_names(restored.items)
    ]
    same = files.bytes_digest(parts) == expected[str(restored.step)]
    return what, '' if same else f'other numbers as step {restored.step}'


def _spoil(path: pathlib.Path, dice, others=()) -> str:
  """Changes a file; returns in words how."""
  data = bytearray(path.read_bytes())
  kind = dice.choice(('flip', 'flip', 'flip', 'truncation', 'deletion', 'swap'))
  if kind == 'deletion':
    path.unlink()
  elif kind == 'swap' and others:
    path.write_bytes(dice.choice(others).read_bytes())
  elif kind == 'truncation':
    path.write_bytes(data[: dice.randrange(len(data) + 1)])
  elif data:
    data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
    path.write_bytes(data)
  return kind


def _edit(line: Line, run, name: str, whole) -> str:
  """A run that is continued after one of its files was changed."""
  workdir = machine.copy(run, line.place('edited'), at=7)
  what = _spoil(workdir / name, line.random)
  problem, text = _goes_on(line, workdir, name, whole, {})
  # What is gone is said, and what it held begins anew.
  return '' if f'{name}: missing' in text else problem and f'{what}: {problem}'


def _goes_on(line: Line, workdir, name: str, whole, options) -> tuple[str, str]:
  """(what is wrong, what it said) of a run that goes on over a changed file.

  It is refused by a line with that name, or ends as the whole one.
  """
  child = line.train(workdir, **options)
  code, text = child.wait(), child.text()
  if code == 2:
    return machine.one_line(code, text, name), text
  if code or 'Traceback' in text:
    return f'exit {code}: {text[-300:]}', text
  problem = machine.differences(machine.outcome(workdir), whole)
  return problem and f'other {problem}: {text[-300:]}', text


def _spoil_inputs(line: Line) -> None:
  """Changes weights, data and caches under a run that goes on."""
  for mode in ('params', 'cache'):
    folder, pristine = line.place('inputs'), line.place('pristine')
    machine.call(lambda top=folder: _write_inputs(top))
    options = {
      'model__preset': '',
      'model__init_from': str(folder / 'base'),
      'data__train': str(folder / 'pairs.jsonl'),
      'data__cache_dir': str(folder / 'cache'),
      'reference__mode': mode,
    }
    run = line.baseline(**options)
    whole = machine.outcome(run)
    shutil.copytree(folder, pristine)
    # Each kind as often, however many files it has.
    names = ['base', 'pairs.jsonl', 'cache/tokens']
    names += ['cache/reference'] if mode == 'cache' else []
    for _ in range(_INPUTS // 2):
      name = line.random.choice(names)
      top = folder / name
      files = sorted(p for p in top.rglob('*') if p.is_file()) or [top]
      path = line.random.choice(files)
      what = f'{_spoil(path, line.random, files)} of {path.relative_to(folder)}'
      workdir = machine.copy(run, line.place('changed'), at=7)
      problem, _ = _goes_on(line, workdir, name, whole, options)
      line.fault(what, problem)
      shutil.rmtree(folder)
      shutil.copytree(pristine, folder)


def _write_inputs(folder: pathlib.Path) -> None:
  """Writes a model and pairs for byte tokens."""
  sys.path.append(str(machine.ROOT / 'tests' / 'run'))
  import small_models

  small_models.write(folder / 'base')
  rows = [
    {'prompt': f'p{i}', 'chosen': f'yes {i}', 'rejected': f'no {i}'}
    for i in range(48)
  ]
  text = ''.join(json.dumps(row) + '\n' for row in rows)
  (folder / 'pairs.jsonl').write_text(text)
