"""Benchmark of encoding: rows per second, by one process and by several.

Comes in: a data file, a tokenizer, numbers of processes. Goes out: a table of
rows per second from the file to a finished token store, and of TRL's own
preparation of the same rows in memory, in an environment of its own. A round
measures every line in turn, so noise of the machine hits all of them alike.
Writes to a scratch folder only.
"""

import functools
import os
import pathlib
import resource
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from dpo_jax import errors
from dpo_jax.data.sources import source as sources
from dpo_jax.data.text import encode, encoders, tokenizer
from dpo_jax.data.text.ledger import Ledger
from dpo_jax.run import encoding
from dpo_jax.storage import files, token_store

_TRL = pathlib.Path(__file__).resolve().parents[2] / 'scripts/trl_encoding.py'


class Options(NamedTuple):
  """Flags of scripts/benchmark.py --encoding, one per field."""

  data: str = ''  # pairs of text
  tokenizer: str = 'byte'
  chat_template: str = ''  # a Jinja file: each prompt is then a user's turn
  max_length: int = 1024  # tokens
  rows: int = 0  # first rows of the file; 0 = all
  processes: tuple[str, ...] = ('1', '0')  # 0 = one per core
  rounds: int = 3
  batch_size: int = 64  # prompts of a batch
  step_ms: float = 100.0  # an update that could wait for its batch
  trl_python: str = ''  # of an environment with trl; '' = without TRL
  json: str = ''  # file to write


class _Cost(NamedTuple):
  """One measurement."""

  rows: int
  wall: float  # seconds
  cpu: float  # seconds, of all processes together


def run(options: Options) -> str:
  """Runs the benchmark; returns the table as Markdown."""
  if not options.data:
    raise errors.refuse('--data', 'is not given', 'name a file of pairs')
  counts = dict.fromkeys(encoding.count(int(n)) for n in options.processes)
  lines: dict[tuple[str, int], Callable[[], _Cost]] = {}
  engine = tokenizer.load(options.tokenizer)
  for count in counts:
    lines['dpo_jax', count] = functools.partial(_ours, options, engine, count)
  for count in counts if options.trl_python else ():
    lines['TRL', count] = functools.partial(_trl, options, count)
  costs = {line: [] for line in lines}
  for _ in range(options.rounds):
    for line, measure in lines.items():
      costs[line].append(measure())
  if options.json:
    files.write_json(
      options.json,
      {
        f'{name}/{n}': [c._asdict() for c in costs[name, n]]
        for name, n in costs
      },
    )
  return f'{_report(costs)}\n\n{_ours(options, engine, max(counts), _wait)}'


def _ours(
  options: Options,
  engine: encoders.Tokenizer,
  count: int,
  then: Callable[[Options, token_store.TokenStore], Any] | None = None,
) -> Any:
  """Encodes the file into a token store, as a command does.

  Returns:
    The cost; with `then`, its value of (options, store).
  """
  choices = encode.EncodeOptions(
    max_length=options.max_length,
    truncation='keep_prompt_end',
    use_chat_template=bool(options.chat_template),
    chat_template=files.read_text(options.chat_template)
    if options.chat_template
    else None,
    # TRL drops none.
    drop_duplicates=False,
  )
  ledger = Ledger()
  wall, cpu = time.monotonic(), _cpu()
  records = sources.open_source(options.data).records()
  with tempfile.TemporaryDirectory() as scratch:
    with token_store.draft(pathlib.Path(scratch) / 'store') as draft:
      stream = encoding.stream(
        _first(records, options.rows),
        engine,
        choices,
        ledger,
        num_processes=count,
      )
      draft.fill(stream)
      store = draft.seal({'ledger': ledger.as_dict()})
    if then:
      return then(options, store)
  return _Cost(ledger.read, time.monotonic() - wall, _cpu() - cpu)


def _wait(options: Options, store: token_store.TokenStore) -> str:
  """Whether an update waits for its batch."""
  # Here: it imports jax, which encoding does without.
  from dpo_jax.bench import waiting

  return waiting.run(
    store,
    batch_size=min(options.batch_size, len(store)),
    row_length=options.max_length,
    step_ms=options.step_ms,
  )


def _first(records, limit: int):
  for index, record in enumerate(records):
    if limit and index >= limit:
      return
    yield record


def _cpu() -> float:
  """CPU seconds of this process and of those that it has waited for."""
  whose = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
  uses = [resource.getrusage(who) for who in whose]
  return sum(use.ru_utime + use.ru_stime for use in uses)


def _trl(options: Options, count: int) -> _Cost:
  """TRL's own preparation of the rows, timed by itself."""
  flags = {
    'data': os.path.abspath(options.data),
    'tokenizer': os.path.abspath(options.tokenizer),
    'chat_template': options.chat_template,
    'max_length': options.max_length,
    'rows': options.rows,
    'processes': count,
  }
  done = subprocess.run(
    [options.trl_python, _TRL, *(f'--{k}={v}' for k, v in flags.items())],
    capture_output=True,
    text=True,
  )
  answer = files.parse_object((done.stdout.splitlines() or [''])[-1])
  if done.returncode or not answer:
    last = (done.stderr.strip().splitlines() or ['no answer'])[-1]
    raise errors.refuse(
      '--trl_python', f'TRL did not run ({last})', 'look at its environment'
    )
  return _Cost(**answer)


def _report(costs: dict[tuple[str, int], list[_Cost]]) -> str:
  """The table; medians over rounds."""
  rows = [
    f'{next(iter(costs.values()))[0].rows:,} rows; medians of rounds',
    '',
    '| by | processes | rows/s | rows per CPU-s | faster than the first |',
    '|---|---|---|---|---|',
  ]
  base, *_ = costs.values()
  for (name, count), measured in costs.items():
    # Ratios within a round: the machine may be slower in another.
    ratio = statistics.median(
      (c.rows / c.wall) / (b.rows / b.wall) for c, b in zip(measured, base)
    )
    speed = statistics.median(c.rows / c.wall for c in measured)
    cheap = statistics.median(c.rows / c.cpu for c in measured)
    rows.append(
      f'| {name} | {count} | {speed:,.0f} | {cheap:,.0f} | {ratio:.2f} |'
    )
  return '\n'.join(rows)
