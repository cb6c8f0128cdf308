"""encoding: several processes make what one process makes, to the byte."""

import json
import os
import signal
import subprocess
import sys
import time

import pyarrow as pa
import pyarrow.parquet
import pytest
import toy_tokenizers

from dpo_jax.data.sources import source
from dpo_jax.data.text import encode
from dpo_jax.data.text.ledger import Ledger
from dpo_jax.run import encoding, preemption
from dpo_jax.storage import token_store
from dpo_jax.types import InputError

_CHUNK = 6  # records, so that 80 rows are many chunks


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
  monkeypatch.setattr(encode, 'CHUNK', _CHUNK)
  monkeypatch.setattr(encoding, '_FIRST_CHUNKS', 1)


@pytest.fixture(scope='module')
def tokenizer(tmp_path_factory):
  folder = tmp_path_factory.mktemp('tokenizer')
  made = toy_tokenizers.byte_level()
  return toy_tokenizers.load(
    folder, made, eos_token='</s>', chat_template=toy_tokenizers.CHATML
  )


def _text_rows():
  """Rows of all fates: kept, too long, without a pair, duplicate."""
  rows = []
  for i in range(80):
    rejected = f'no {i}' if i % 7 else 'yes'
    prompt = f'What is {i}? ' * (40 if i % 11 == 5 else 1)
    rows.append({'prompt': prompt, 'chosen': 'yes', 'rejected': rejected})
  # Duplicates of rows in other chunks.
  return rows + rows[3:30:5]


def _chat_rows():
  return [
    {
      'prompt': [{'role': 'user', 'content': row['prompt']}],
      'chosen': [{'role': 'assistant', 'content': row['chosen']}],
      'rejected': [{'role': 'assistant', 'content': row['rejected'] + mark}],
    }
    for i, row in enumerate(_text_rows())
    for mark in ['<|im_end|>' * (i % 13 == 4)]
  ]


def _write(path, rows):
  if path.suffix == '.parquet':
    pa.parquet.write_table(pa.Table.from_pylist(rows), path)
  else:
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows))


def _options(**more):
  return encode.EncodeOptions(max_length=300, **more)


def _encode(path, tokenizer, options, folder, number, **more):
  """The files of the store by name, or the error; and the ledger."""
  ledger = Ledger()
  records = source.open_source(path, use_token_ids=True).records()
  stream = encoding.stream(
    records, tokenizer, options, ledger, num_processes=number, **more
  )
  try:
    with token_store.draft(folder) as draft:
      draft.fill(stream)
      draft.seal({'ledger': ledger.as_dict()})
  except InputError as error:
    assert not folder.exists()
    return str(error), None
  return {p.name: p.read_bytes() for p in folder.iterdir()}, ledger


@pytest.mark.parametrize(
  ('name', 'rows'),
  [('a.jsonl', _text_rows()), ('b.parquet', _chat_rows())],
  ids=['text', 'chats'],
)
def test_processes_make_the_bytes_of_one(tmp_path, tokenizer, name, rows):
  path = tmp_path / name
  _write(path, rows)
  options = _options(truncation='drop')
  one, ledger = _encode(path, tokenizer, options, tmp_path / '1', 1)
  # encode_all, which packs nothing, is the other way to the same records.
  encoded, counts = encode.encode_all(
    source.open_source(path).records(), tokenizer, options
  )
  store = token_store.write(tmp_path / '0', encoded, {'ledger': {}})
  assert store.digest == token_store.open_store(tmp_path / '1').digest
  assert counts == ledger and ledger.balanced()
  assert ledger.duplicates and len(ledger.dropped) == 2
  for number in (2, 4):
    folder = tmp_path / str(number)
    many, counts = _encode(path, tokenizer, options, folder, number)
    assert many == one
    # Lines are equal too: they depend on the order of the counts.
    assert counts.lines() == ledger.lines()
    assert list(counts.first.items()) == list(ledger.first.items())


@pytest.mark.parametrize(
  ('broken', 'strict', 'line'),
  [
    ({40: '{"prompt": 1'}, False, 41),  # reading fails
    ({40: '{"prompt": 1'}, True, 1),  # a worker refuses a row before it
    ({60: '{"prompt": 1', 45: '{"prompt": "", "chosen": [], "rejected": ""}'},)
    + (False, 46),
  ],
)
def test_the_first_error_is_that_of_one_process(
  tmp_path, tokenizer, broken, strict, line
):
  path = tmp_path / 'a.jsonl'
  lines = [json.dumps(row) for row in _text_rows()]
  for index, text in broken.items():
    lines[index] = text
  path.write_text('\n'.join(lines))
  options = _options(strict=strict)
  one, _ = _encode(path, tokenizer, options, tmp_path / '1', 1)
  assert one.startswith(f'{path}:{line}: ')
  assert _encode(path, tokenizer, options, tmp_path / '3', 3)[0] == one


def test_an_error_of_a_process_comes_before_one_behind_it(tmp_path, tokenizer):
  # A token id beyond the vocabulary, and a broken line that is read ahead.
  path = tmp_path / 'a.jsonl'
  rows = [
    {'prompt_ids': [1], 'chosen_ids': [2], 'rejected_ids': [i + 3]}
    for i in range(60)
  ]
  rows[20]['chosen_ids'] = rows[38]['chosen_ids'] = [10**6]
  lines = [json.dumps(row) for row in rows]
  lines[26] = '{'
  path.write_text('\n'.join(lines))
  for number in (1, 3):
    error, _ = _encode(path, tokenizer, _options(), tmp_path / 's', number)
    assert error.startswith(f'{path}:21: ') and '1000000' in error


@pytest.fixture
def started(monkeypatch):
  """The processes that were started."""
  workers, start = [], encoding._start
  monkeypatch.setattr(
    encoding, '_start', lambda: workers.append(start()) or workers[-1]
  )
  return workers


def test_a_signal_ends_all_processes_at_once(tmp_path, tokenizer, started):
  path = tmp_path / 'a.jsonl'
  _write(path, _text_rows())

  def poll():
    if started:
      raise preemption.Preempted(signal.SIGTERM)

  with pytest.raises(preemption.Preempted):
    _encode(path, tokenizer, _options(), tmp_path / 's', 2, poll=poll)
  assert [w.process.poll() for w in started] == [-signal.SIGKILL] * 2
  assert [p.name for p in tmp_path.iterdir()] == ['a.jsonl']


def test_a_slow_process_holds_nobody_up(tmp_path, tokenizer, started):
  path = tmp_path / 'a.jsonl'
  _write(path, _text_rows())
  polls = []

  def poll():
    # One process sleeps until the other has done all that it may.
    if started and not polls:
      started[0].process.send_signal(signal.SIGSTOP)
    polls.extend([time.monotonic()] * bool(started))
    if polls and polls[-1] - polls[0] > 0.5:
      started[0].process.send_signal(signal.SIGCONT)

  one, _ = _encode(path, tokenizer, _options(), tmp_path / '1', 1)
  two, ledger = _encode(
    path, tokenizer, _options(), tmp_path / '2', 2, poll=poll
  )
  assert two == one and ledger.read == len(_text_rows())


class _Fatal:
  """A connection whose process is killed with the chunk that it gets."""

  def __init__(self, worker):
    self._worker = worker

  def send(self, chunk):
    self._worker.connection.send(chunk)
    # As the kernel does when memory runs out.
    self._worker.process.kill()

  def __getattr__(self, name):
    return getattr(self._worker.connection, name)


def test_a_process_that_dies_is_one_line(tmp_path, tokenizer, monkeypatch):
  path = tmp_path / 'a.jsonl'
  _write(path, _text_rows())
  workers, start = [], encoding._start

  def fatal():
    workers.append(start())
    return workers[-1]._replace(connection=_Fatal(workers[-1]))

  monkeypatch.setattr(encoding, '_start', fatal)
  error, _ = _encode(path, tokenizer, _options(), tmp_path / 's', 2)
  assert error.startswith('config.data.encode_processes: a process that ')
  assert 'by SIGKILL' in error and '; fix: set a smaller number' in error
  assert f'from {path}:' in error and '\n' not in error
  assert all(worker.process.poll() is not None for worker in workers)


def test_little_data_starts_no_process(tmp_path, tokenizer, started):
  path = tmp_path / 'a.jsonl'
  _write(path, _text_rows()[:_CHUNK])
  _encode(path, tokenizer, _options(), tmp_path / 's', 2)
  assert not started


def test_processes_share_the_cores(monkeypatch):
  cores = len(os.sched_getaffinity(0))
  assert encoding.count(0) == cores and encoding.count(3) == 3
  monkeypatch.setenv(encoding.SHARE, str(2 * cores))
  assert encoding.count(0) == 1


def test_a_process_imports_no_jax():
  code = 'import dpo_jax.run.encode_worker, sys; print(*sys.modules)'
  names = subprocess.check_output([sys.executable, '-c', code], text=True)
  heavy = {'jax', 'jaxlib', 'tensorflow', 'grain', 'ml_collections'}
  assert not heavy & set(names.split())
