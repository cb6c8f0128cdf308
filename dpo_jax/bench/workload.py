"""Model shape, tokenizer and pairs of a benchmark.

Comes in: the flags. Goes out: a DecoderConfig and the pairs as token ids, the
same for all that is measured. Holds no weights and touches no device.
"""

import dataclasses
import gzip
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import tokenizers

from dpo_jax import errors
from dpo_jax.data.batches import length_table
from dpo_jax.data.text import tokenizer as tokenizer_lib
from dpo_jax.models import presets
from dpo_jax.models.decoder_config import DecoderConfig
from dpo_jax.storage import files, initial_weights
from dpo_jax.types import Comparison, EncodedRecord

_COLUMNS = ('prompt', 'chosen', 'rejected')  # of the file that --data names
# Flag -> field of a DecoderConfig.
_SHAPE = {
  'layers': 'num_layers',
  'width': 'width',
  'heads': 'num_heads',
  'kv_heads': 'num_kv_heads',
  'head_size': 'head_size',
  'mlp': 'mlp_width',
  'vocab': 'vocab_size',
}


class Store(list):
  """Encoded records with their table, in memory."""

  def __init__(self, records: Sequence[EncodedRecord]):
    """Makes the table."""
    super().__init__(records)
    self.table = length_table.make_table(records)


def is_folder(model: str) -> bool:
  """Whether --model names a folder of weights and not a preset."""
  return model not in presets.names() and pathlib.Path(model).is_dir()


def shape(options: Any) -> DecoderConfig:
  """Returns the model's shape: a preset or a folder, and the shape flags."""
  given = {
    field: getattr(options, flag)
    for flag, field in _SHAPE.items()
    if getattr(options, flag)
  }
  if not is_folder(options.model):
    return dataclasses.replace(presets.get(options.model), **given)
  if given:
    flag = next(flag for flag in _SHAPE if getattr(options, flag))
    raise errors.refuse(
      f'--{flag}',
      f'{getattr(options, flag)} is not used, {options.model!r} is a folder',
      'leave it out, or give a preset',
    )
  return initial_weights.read_config(options.model)


def records(options: Any, config: DecoderConfig) -> list[EncodedRecord]:
  """Returns the pairs as token ids, all of the file, in its order.

  Without --data lengths are drawn; without a tokenizer, one is trained on the
  file with as many tokens as the model has.
  """
  if not options.data:
    return _drawn(config.vocab_size, options.max_length)
  rows = _read_pairs(options.data)
  columns = [[row[name] for row in rows] for name in _COLUMNS]
  name = options.tokenizer
  if not name and is_folder(options.model):
    name = initial_weights.tokenizer_of(options.model)
  if name:
    ids, eos = _encode(name, columns, config.vocab_size)
  else:
    ids, eos = _encode_by_bpe(columns, config.vocab_size), 0
  return [
    _fit(*(np.array(part, np.int32) for part in row), eos, options.max_length)
    for row in zip(*ids)
    if all(row)
  ]


def save(path: pathlib.Path, records: Sequence[EncodedRecord]) -> None:
  """Writes the records: flat token ids, and the length of each part."""
  parts = [part for r in records for part in (r.prompt, *r.completions)]
  np.savez(
    path,
    tokens=np.concatenate(parts),
    lengths=np.array([len(part) for part in parts]).reshape(-1, 3),
  )


def load(path: pathlib.Path) -> Store:
  """Reads what `save` wrote."""
  with np.load(path) as file:
    tokens, lengths_N3 = file['tokens'], file['lengths']
  parts = np.split(tokens, np.cumsum(lengths_N3.ravel())[:-1])
  comparisons = (Comparison(0, 1),)
  return Store(
    [
      EncodedRecord(parts[i], (parts[i + 1], parts[i + 2]), comparisons)
      for i in range(0, len(parts), 3)
    ]
  )


def _encode(
  name: str, columns: list[list[str]], vocab_size: int
) -> tuple[list[list[list[int]]], int]:
  """Token ids of each column, and the id that ends an answer."""
  tokenizer = tokenizer_lib.load(name)
  if tokenizer.vocab_size > vocab_size:
    raise errors.refuse(
      '--tokenizer',
      f'{name!r} has {tokenizer.vocab_size} tokens, the model {vocab_size}',
      f'--vocab={tokenizer.vocab_size}',
    )
  if tokenizer.eos_id is None:
    raise errors.refuse('--tokenizer', f'{name!r} has no EOS', 'use another')
  ids = [[tokenizer.encode(text) for text in column] for column in columns]
  return ids, tokenizer.eos_id


def _encode_by_bpe(columns: list[list[str]], vocab_size: int):
  """Token ids of each column by a BPE that is trained on the texts."""
  tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(False)
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=vocab_size - 1, show_progress=False
  )
  texts = (p + c for p, c in zip(columns[0], columns[1]))
  tokenizer.train_from_iterator(texts, trainer)
  # Token 0 ends every answer, so the tokenizer's ids move up by one.
  return [
    [[i + 1 for i in e.ids] for e in tokenizer.encode_batch(column)]
    for column in columns
  ]


def _read_pairs(path: str) -> list[dict[str, str]]:
  fix = f'name a JSONL(.gz) file with {", ".join(_COLUMNS)}'
  opener = gzip.open if path.endswith('.gz') else open
  try:
    with opener(path, 'rb') as file:
      lines = file.readlines()
  except (OSError, EOFError) as error:
    why = getattr(error, 'strerror', None) or error
    raise errors.refuse(
      '--data', f'{path!r} cannot be read ({why})', fix
    ) from error
  rows = []
  for number, line in enumerate(lines, 1):
    row = files.parse_json(line, f'{path}:{number}', fix=fix)
    for column in _COLUMNS:
      if not isinstance(row.get(column), str):
        raise errors.refuse(f'{path}:{number}', f'no text {column!r}', fix)
    rows.append(row)
  return rows


def _drawn(vocab_size: int, max_length: int) -> list[EncodedRecord]:
  """Random tokens; lengths as in HH harmless under a BPE of 8,192 tokens."""
  rng = np.random.default_rng(0)
  # Logarithms of the lengths of prompt, chosen and rejected are normal.
  lengths = np.exp(rng.normal((4.5, 3.4, 3.4), (0.75, 0.95, 0.95), (512, 3)))
  return [
    _fit(
      *(
        rng.integers(1, vocab_size, max(1, int(n))).astype(np.int32)
        for n in row
      ),
      0,
      max_length,
    )
    for row in lengths
  ]


def _fit(prompt, chosen, rejected, eos: int, max_length: int) -> EncodedRecord:
  """Cuts a pair: answers end with EOS, the prompt loses its start."""
  most = max_length // 2
  answers = [
    np.append(a[: most - 1], eos).astype(np.int32) for a in (chosen, rejected)
  ]
  room = max_length - max(map(len, answers))
  return EncodedRecord(prompt[-room:], tuple(answers), (Comparison(0, 1),))
