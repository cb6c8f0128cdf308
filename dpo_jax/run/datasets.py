"""config -> records as token ids: read, encoded, split, stored.

Comes in: a validated config and the tokenizer. Goes out: the records to train
on and the held-out ones, each as a token store with the indices of its records,
and the ledger, which accounts for every row. Writes nothing but the token
cache, where a store has a name only after all data was checked.
"""

import contextlib
import functools
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from ml_collections.config_dict import ConfigDict

from dpo_jax import config as config_lib
from dpo_jax import errors
from dpo_jax.data.batches import (
  length_table,
  split,
)
from dpo_jax.data.sources import (
  files,
  foreign,
  mixture,
  prompts,
  synthetic,
)
from dpo_jax.data.sources import source as sources
from dpo_jax.data.text import chat, encode
from dpo_jax.data.text.encoders import Tokenizer
from dpo_jax.data.text.ledger import Ledger
from dpo_jax.run import chat_templates, data_checks, encoding
from dpo_jax.storage import caches, reference_cache, token_store
from dpo_jax.storage import files as storage_files

_NUM_SYNTHETIC = 4096  # prompts


class Part(NamedTuple):
  """The records of training or of evaluation."""

  store: token_store.TokenStore
  indices: np.ndarray  # int64, the records of the store in this part
  # The reference's scores of the store, if they are precomputed.
  scores: reference_cache.ReferenceCache | None = None


class Data(NamedTuple):
  """All records of a run, and where every row of its sources went."""

  train: Part | None  # None = a part that was not asked for
  evaluation: Part | None
  ledger: dict[str, dict[str, Any]]  # {'train' or 'eval': counts of rows}


def read(
  config: ConfigDict,
  tokenizer: Tokenizer,
  cache_dir: storage_files.AnyPath,
  log: Callable[[str], None] = print,
  poll: Callable[[], None] = lambda: None,
  parts: Collection[str] = ('train', 'eval'),
  check: Callable[[str, length_table.LengthTable, np.ndarray], None]
  | None = None,
) -> Data:
  """Reads, encodes and splits the sources that config.data names.

  Args:
    config: validated.
    tokenizer: the model's.
    cache_dir: folder of the caches.
    log: takes one line of text.
    poll: called per record; raises to stop.
    parts: those that are wanted, of 'train' and 'eval'. Held-out records of
      the training data are read with it.
    check: called with 'train' or 'eval', the table of its source's records and
      the indices of its own; raises to refuse them.

  Raises:
    InputError: the first input that cannot be used.
  """
  if not parts:
    return Data(None, None, {})
  # What is encoded gets its name in the cache when this context ends well.
  with contextlib.ExitStack() as drafts:
    encode_part = functools.partial(
      _encode, config, tokenizer, cache_dir, drafts, log=log, poll=poll
    )
    read, indices, ledger = _read_parts(config, parts, encode_part, log)
    noisy = data_checks.check(
      config,
      parts,
      {use: part.store for use, part in read.items()},
      indices,
      ledger,
      log,
      check,
    )
  stores = {}
  for use, part in read.items():
    is_same = use == 'eval' and config.data.eval == 'split'
    stores[use] = stores['train'] if is_same else part.opened()
  done = {use: Part(stores[use], indices[use]) for use in parts}
  # Held-out comparisons stay as they are, in the same store of tokens.
  if noisy is not None:
    store = stores['train'].with_table(noisy)
    done['train'] = done['train']._replace(store=store)
  return Data(done.get('train'), done.get('eval'), ledger)


def read_prompts(config: ConfigDict, tokenizer: Tokenizer) -> list[np.ndarray]:
  """Returns token ids of the prompts in config.sample.prompts, none truncated.

  A row has `prompt` (text or messages) or `messages`. It is encoded like a
  prompt of training, up to the beginning of the answer. An assistant message at
  the end of `prompt` is continued; one at the end of `messages` is the answer
  and is left out.
  """
  path = config.sample.prompts
  rows = files.read_rows(path)
  placed = [(f'{path}:{number}', row) for number, row in rows]
  if not placed:
    raise errors.refuse(path, 'has no rows', 'give one prompt per line')
  return encode_prompts(placed, config, tokenizer)


def encode_prompts(
  rows: Iterable[tuple[str, dict[str, Any]]],
  config: ConfigDict,
  tokenizer: Tokenizer,
) -> list[np.ndarray]:
  """Returns token ids of prompts, as read_prompts does.

  Args:
    rows: (place for messages, row with `prompt` or `messages`).
    config: validated, except for data.train.
    tokenizer: the model's.
  """
  renames = foreign.parse_renames(config.data.columns)
  records = [prompts.parse_row(row, renames, where) for where, row in rows]
  options = encode_options(config, tokenizer, (1.0,))
  # Records are encoded as demonstrations with a dummy answer: no limit cuts
  # them, and no prompt is dropped in silence.
  options = options._replace(
    max_length=2**30,
    prompt_max_length=None,
    stage='sft',
    train_on='last',
    drop_duplicates=False,
    strict=True,
  )
  encoded, _ = encode.encode_all(records, tokenizer, options)
  return [record.prompt for record in encoded]


class _Encoded(NamedTuple):
  """The encoded records of a part, from the token cache or new."""

  store: token_store.TokenStore
  folder: storage_files.AnyPath | None  # of a new store, once all is checked

  @property
  def table(self) -> length_table.LengthTable:
    """The table of the records."""
    return self.store.table

  def opened(self) -> token_store.TokenStore:
    """Returns the store under its own name."""
    return token_store.open_store(self.folder) if self.folder else self.store


def _read_parts(
  config, parts, encode_part, log
) -> tuple[dict[str, _Encoded], dict[str, np.ndarray], dict[str, dict]]:
  """Encodes and splits: records, indices and ledger of the parts read."""
  read, indices, ledger = {}, {}, {}
  is_split = config.data.eval == 'split'
  if 'train' in parts or is_split:
    names = config_lib.source_names(config.data.train)
    read['train'] = encode_part('train', names, config_lib.proportions(config))
    ledger['train'] = dict(read['train'].store.meta['ledger'])
    indices['train'] = np.arange(len(read['train'].store))
  # With 'split' both parts share one store: their indices tell them apart.
  if is_split:
    read['eval'] = read['train']
    indices['train'], indices['eval'] = _split(
      config, read['train'], ledger['train'], log
    )
  elif 'eval' in parts:
    names = config_lib.source_names(config.data.eval)
    # Evaluation takes every source once: proportions are for training.
    read['eval'] = encode_part('eval', names, (1.0,) * len(names))
    ledger['eval'] = dict(read['eval'].store.meta['ledger'])
    limit = config.eval.max_comparisons
    indices['eval'] = split.first(read['eval'].table, limit)
  return read, indices, ledger


def _encode(
  config, tokenizer, cache, drafts, use, names, shares, *, log, poll
) -> _Encoded:
  """The records of the sources, from the token cache or encoded now."""
  opened = [open_source(config, name, log) for name in names]
  options = encode_options(config, tokenizer, shares)
  # The seed matters only if a fraction of a source is drawn: then it is in the
  # key. Otherwise runs of all seeds share one store.
  choice = [list(shares), config.seed if any(s % 1 for s in shares) else 0]
  # Fingerprints of the sources are enough: a hit of the cache reads no record.
  key = token_store.key(
    [source.fingerprint for source in opened],
    tokenizer.fingerprint,
    options.chat_template,
    options._asdict()
    | {'formats': [s.row_format for s in opened], 'choice': choice}
    | {'version': encode.VERSION}
    # Rows that lack what a loss needs are refused where they are read.
    | ({'needs': needs} if (needs := config_lib.row_needs(config)) else {}),
  )
  folder = cache / 'tokens' / key
  if storage_files.is_whole(folder):
    store = token_store.open_store(folder)
    caches.touch(folder)
    log(f'{use}: {len(store)} records from the token cache {folder}')
    chat_templates.log_options(use, options, store.meta['ledger'], log)
    return _Encoded(store, None)
  draft = drafts.enter_context(token_store.draft(folder))
  ledger = Ledger()
  packed = encoding.stream(
    mixture.mix(opened, shares, config.seed),
    tokenizer,
    options,
    ledger,
    num_processes=config.data.encode_processes,
    poll=poll,
    log=lambda line: log(f'{use}: {line}'),
  )
  # Closed at once by an error, which ends the processes.
  with contextlib.closing(packed):
    draft.fill(packed)
  for line in ledger.lines():
    log(f'{use}: {line}')
  if not ledger.kept:
    problem, fix = ledger.main_reason()
    raise errors.refuse(
      f'config.data.{use}',
      f'no record of {", ".join(names)} is left after encoding: {problem}',
      fix,
    )
  counts = ledger.as_dict()
  chat_templates.log_options(use, options, counts, log)
  store = draft.seal({'ledger': counts, 'sources': list(names)})
  return _Encoded(store, folder)


def open_source(
  config: ConfigDict, name: str, log: Callable[[str], None] = print
) -> sources.Source:
  """An embedded set by its name, else the files or data set of that name."""
  if name in synthetic.EMBEDDED:
    # Not config.seed: the data stays the same over seeds of training.
    make, seed = synthetic.EMBEDDED[name], 0
    text = f'{name} {_NUM_SYNTHETIC} {seed} {synthetic.VERSION}'
    return sources.Source(
      name,
      storage_files.bytes_digest([text.encode()]),
      'synthetic',
      lambda: iter(make(_NUM_SYNTHETIC, seed)),
    )
  source = sources.open_source(
    name,
    row_format=config.data.row_format,
    use_token_ids=config.data.use_token_ids,
    columns=config.data.columns,
    needs=config_lib.row_needs(config),
    log=log,
    manual_dir=config.data.manual_dir or None,
  )
  if config.data.use_token_ids and source.row_format != 'token_ids':
    log(f'{name}: no *_ids columns, so its text is tokenised')
  return source


def _split(
  config, train: _Encoded, ledger: dict[str, Any], log
) -> tuple[np.ndarray, np.ndarray]:
  """Indices of (training, held-out) records; completes the ledger."""
  kept, held_out, surplus = split.split_by_prompt_hash(
    train.table, config.data.eval_pairs
  )
  num_records = len(train.store)
  if surplus:
    log(f'held out: {surplus} comparisons of its last prompt go unused')
  if not len(kept):
    raise errors.refuse(
      'config.data.eval_pairs',
      f'{config.data.eval_pairs} leaves nothing to train on, of {num_records} '
      'records',
      'a smaller number',
    )
  ledger['held_out'] = len(held_out)
  ledger['surplus'] = num_records - len(kept) - len(held_out)
  return kept, held_out


def encode_options(
  config: ConfigDict, tokenizer: Tokenizer, shares: Sequence[float]
) -> encode.EncodeOptions:
  """The options of encoding, with the source text of the chat template.

  Args:
    config: validated.
    tokenizer: whose templates data.chat_template may name.
    shares: how many times each source is taken.

  Raises:
    InputError: data.chat_template is neither a file nor a known name.
  """
  data = config.data
  template = chat_templates.read(data.chat_template, tokenizer)
  return encode.EncodeOptions(
    max_length=data.max_length,
    truncation=data.truncation,
    prompt_max_length=data.prompt_max_length or None,
    stage=config.stage,
    add_eos=data.add_eos,
    add_bos=data.add_bos,
    use_chat_template=data.use_chat_template == 'always',
    chat_template=template,
    template_args=config_lib.template_args(config),
    template_date=data.template_date
    if chat.writes_date(template, tokenizer)
    else '',
    train_on=data.train_on,
    allow_control_tokens=data.allow_control_tokens,
    # A source taken more than once is meant to repeat its records.
    drop_duplicates=data.drop_duplicates and max(shares) <= 1,
    strict=data.strict,
  )
