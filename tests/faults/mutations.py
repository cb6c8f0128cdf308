"""R9 inputs: the suite's refusals, and mutations in large numbers.

Comes in: the programs of the suite that mutate rows, tokenizers and models.
Goes out: one fault per mutation; a violation per traceback, and per mutation
that takes longer than a read may.
"""

import collections
import importlib
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import machine
import suites
from score import Line

_ROWS = 100_000
_ARTEFACTS = 10_000  # tokenizers, and the three JSON files of models
_SECONDS = 5  # after which a read counts as hung
_CHUNK = 2_500  # mutations of one process
_LIMIT = 1800  # seconds of such a process
_FOLDERS = ('data/sources', 'data/text', 'storage')


def are_read_or_refused(line: Line) -> None:
  """R9: files that must be refused are; no mutation ends in a traceback."""
  suites.of('R9')(line)
  if line.size == 'small':
    return
  sys.path += [str(machine.ROOT / 'tests' / folder) for folder in _FOLDERS]
  models = ('m/config.json', 'm/model.safetensors.index.json')
  models += ('p/adapter_config.json',)
  share = _ARTEFACTS // (1 + len(models))
  _mutate(line, 'rows of chats', _ROWS, _rows)
  _mutate(line, 'tokenizers', share, _tokenizers)
  for name in models:
    _mutate(line, name, share, lambda *args, n=name: _models(n, *args))


def _mutate(
  line: Line, what: str, count: int, run: Callable[[int, int], Any]
) -> None:
  """Runs so many mutations in processes of their own, and counts them."""
  counts, left = collections.Counter(), count
  hangs, failed, seconds = 0, 0, 0.0
  while left:
    size, seed = min(left, _CHUNK), line.random.randrange(2**31)
    left -= size
    start = time.monotonic()
    try:
      found, failures = machine.call(lambda n=size, s=seed: run(n, s), _LIMIT)
    except RuntimeError as error:
      found, failures = {}, [f'seed {seed}: {error}']
    seconds += time.monotonic() - start
    counts.update(found)
    slow = [text for text in failures if 'too slow' in text]
    hangs, failed = hangs + len(slow), failed + len(failures) - len(slow)
    line.faults += size - 1
    line.violations += [f'{what}: {x[-300:]}' for x in failures[1:]]
    line.fault(what, failures[0][-300:] if failures else '')
  words = ', '.join(f'{n:,} {word}' for word, n in sorted(counts.items()))
  line.notes.append(
    f'{count:,} mutated {what}: {words}; {failed} tracebacks, {hangs} longer '
    f'than {_SECONDS} s; {count / seconds:,.0f} per second'
  )


def _rows(count: int, seed: int):
  """({outcome: rows}, failures) of mutated rows."""
  found = importlib.import_module('mutated_rows').run(count, seed, _SECONDS)
  return [dict(found[0]), found[1]]


def _tokenizers(count: int, seed: int):
  """({outcome: folders}, failures) of mutated tokenizers."""
  module = importlib.import_module('mutated_tokenizers')
  counts, failures = module.run(count, seed, _SECONDS)
  return [dict(counts), failures]


def _models(name: str, count: int, seed: int):
  """({outcome: folders}, failures) of one mutated file of a model."""
  module = importlib.import_module('mutated_models')
  with tempfile.TemporaryDirectory() as top:
    module.write(pathlib.Path(top))
    counts, failures = module.run(
      pathlib.Path(top), name, count, seed, _SECONDS
    )
  return [dict(counts), failures]
