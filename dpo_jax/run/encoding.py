"""records -> packed records, encoded by several processes.

Comes in: records, a tokenizer, options. Goes out: what one process would make
of them, to the byte: the same records in the same order, the same counts, the
same error. Chunks of records are encoded apart, and taken in their order. Few
chunks are in memory at a time. Reads no file and writes none.

The processes are plain commands (encode_worker.py), so they share neither
devices nor modules with this one, and the caller's script is not run again.
"""

import contextlib
import multiprocessing.connection
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from dpo_jax import errors
from dpo_jax.data.text import encode
from dpo_jax.data.text.encoders import Tokenizer
from dpo_jax.data.text.ledger import Ledger
from dpo_jax.run import encode_worker
from dpo_jax.storage import packed_records
from dpo_jax.types import InputError, PreferenceRecord

KEY = 'config.data.encode_processes'
# Environment variable: processes of this program on this host, which share its
# cores. Whoever starts several sets it.
SHARE = 'DPO_JAX_PROCESSES_PER_HOST'

# Chunks that are encoded before processes are started, which takes a second.
_FIRST_CHUNKS = 4
_POLL_SECONDS = 0.2
_LOG_SECONDS = 10.0

_Chunk = list[PreferenceRecord]


class _Worker(NamedTuple):
  """A process that encodes."""

  process: subprocess.Popen
  connection: Connection


def stream(
  records: Iterable[PreferenceRecord],
  tokenizer: Tokenizer,
  options: encode.EncodeOptions,
  ledger: Ledger,
  *,
  num_processes: int = 0,
  poll: Callable[[], None] = lambda: None,
  log: Callable[[str], None] = lambda line: None,
) -> Iterator[packed_records.Packed]:
  """Yields the records of encode.encode_all, packed; fills `ledger`.

  Args:
    records: encoded in this order.
    tokenizer: of every record.
    options: of every record.
    ledger: takes the counts.
    num_processes: that encode; 1 = this one, 0 = one per core. Little data is
      encoded by this one in any case.
    poll: called per record and while waiting; raises to stop, which ends the
      processes at once.
    log: takes a line of progress every few seconds.

  Raises:
    InputError: as encode.encode_all, or a process died.
  """
  seen = set() if options.drop_duplicates else None
  progress = _Progress(log)
  chunks = encode.chunks(_polled(records, poll))
  with contextlib.closing(
    _encoded(chunks, tokenizer, options, count(num_processes), poll)
  ) as parts:
    for packed, counts in parts:
      is_kept = ledger.add(counts, packed.table.uids.tolist(), seen)
      progress.show(ledger.read)
      yield packed_records.take(packed, is_kept)


def count(num_processes: int) -> int:
  """Returns the number of processes: 0 = this process's share of the cores."""
  if num_processes:
    return num_processes
  share = os.environ.get(SHARE, '')
  siblings = int(share) if share.isdecimal() else 1
  return max(1, len(os.sched_getaffinity(0)) // max(1, siblings))


class _Progress:
  """A line now and then while data is encoded."""

  def __init__(self, log: Callable[[str], None]):
    self._log = log
    self._start = self._last = time.monotonic()

  def show(self, num_records: int) -> None:
    now = time.monotonic()
    if now - self._last >= _LOG_SECONDS:
      self._last = now
      rate = num_records / (now - self._start)
      self._log(f'encoding: {num_records:,} records, {rate:,.0f} per second')


def _polled(
  records: Iterable[PreferenceRecord], poll: Callable[[], None]
) -> Iterator[PreferenceRecord]:
  """The records, with a poll before each: reading can take minutes."""
  for record in records:
    poll()
    yield record


def _encoded(
  chunks: Iterator[_Chunk], tokenizer, options, number: int, poll
) -> Iterator[encode_worker.Answer]:
  """The chunks encoded: the first here, the others by processes."""
  encoder, num_done = encode.Encoder(tokenizer, options), 0
  for chunk in chunks:
    yield encode_worker.packed(encoder, chunk)
    num_done += 1
    if number > 1 and num_done == _FIRST_CHUNKS:
      break
  # Data that ends here starts no process.
  first = next(chunks, None)
  if first is not None:
    # Once for all of them: a tokenizer can have a hundred thousand words.
    setup = pickle.dumps((tokenizer, options))
    with _workers(number) as workers:
      yield from _shared_out(_with(first, chunks), workers, setup, poll)


def _with(first: _Chunk, chunks: Iterator[_Chunk]) -> Iterator[_Chunk]:
  yield first
  yield from chunks


@contextlib.contextmanager
def _workers(number: int) -> Iterator[list[_Worker]]:
  """The processes, which say when they are ready; killed in the end."""
  workers = []
  try:
    for _ in range(number):
      workers.append(_start())
    yield workers
  finally:
    # They hold nothing that is not here too.
    for worker in workers:
      worker.process.kill()
    for worker in workers:
      worker.process.wait()
      worker.connection.close()


def _start() -> _Worker:
  """Starts a process at the other end of a connection."""
  own, other = multiprocessing.connection.Pipe()
  folders = [os.path.abspath(folder) for folder in sys.path]
  with other:
    process = subprocess.Popen(
      [sys.executable, '-m', encode_worker.__name__, str(other.fileno())],
      pass_fds=[other.fileno()],
      stdin=subprocess.DEVNULL,
      # Apart from the terminal's signals: this process ends the others.
      start_new_session=True,
      env=os.environ
      | {
        'PYTHONPATH': os.pathsep.join(folders),
        # One thread each: the processes are one per core.
        'TOKENIZERS_PARALLELISM': 'false',
      },
    )
  return _Worker(process, own)


def _shared_out(
  chunks: Iterator[_Chunk], workers: list[_Worker], setup: bytes, poll
) -> Iterator[encode_worker.Answer]:
  """Hands the chunks to whoever is free; yields the answers in their order."""
  idle: list[_Worker] = []
  # Connection -> (worker, number of its chunk; -1 = it is starting, its place).
  busy = {w.connection: (w, -1, '') for w in workers}
  answers: dict[int, Any] = {}  # by number, those that came too early
  num_sent = num_yielded = 0
  source, is_read = _or_error(chunks), False
  while answers or not is_read or any(n >= 0 for _, n, _ in busy.values()):
    # The limit bounds the answers that wait for an earlier one.
    while idle and not is_read and num_sent - num_yielded < 2 * len(workers):
      chunk = next(source, None)
      if chunk is None:
        is_read = True
        break
      number, num_sent = num_sent, num_sent + 1
      # What could not be read is an error after all that was read before it.
      if isinstance(chunk, InputError):
        answers[number] = chunk
        continue
      worker, place = idle.pop(), chunk[0].where
      with _alive(worker, place):
        worker.connection.send(chunk)
      busy[worker.connection] = worker, number, place
    while num_yielded in answers:
      answer = answers.pop(num_yielded)
      num_yielded += 1
      if isinstance(answer, Exception):
        raise answer
      yield answer
    # Without a process at work, `wait` would sleep.
    waited = busy and multiprocessing.connection.wait([*busy], _POLL_SECONDS)
    for ready in waited:
      worker, number, place = busy.pop(ready)
      with _alive(worker, place):
        answer = ready.recv()
        if number < 0:  # its word that it reads
          ready.send_bytes(setup)
        else:
          answers[number] = answer
      idle.append(worker)
    poll()


def _or_error(chunks: Iterator[_Chunk]) -> Iterator[_Chunk | InputError]:
  """The chunks; an error of reading as the last of them."""
  try:
    yield from chunks
  except InputError as error:
    yield error


@contextlib.contextmanager
def _alive(worker: _Worker, place: str) -> Iterator[None]:
  """Refuses to go on if the process at the other end is gone."""
  try:
    yield
  except (EOFError, OSError):
    code = worker.process.wait()
    how = f'with exit code {code}'
    if code < 0:
      how = f'by {signal.Signals(-code).name}'
    raise errors.refuse(
      KEY,
      f'a process that encodes ended {how}'
      + (f', with the records from {place} on' if place else ' as it started'),
      'set a smaller number (1 = no further process) if memory ran out',
    ) from None
