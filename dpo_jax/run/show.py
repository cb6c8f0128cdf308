"""config -> encoded records as text, for people: the command --mode=show.

Comes in: a config, and the number of records or the id of one. Goes out: text
on stdout: each record's prompt and completions with the trained tokens marked,
and every count of the ledger with a sentence. Touches no device and no weights.

Trained tokens are green and underlined on a terminal (unless NO_COLOR is set),
and between [[ and ]] elsewhere. A line break is `\\n` followed by one.
"""

import os
import pathlib
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections.config_dict import ConfigDict

from dpo_jax import config as config_lib
from dpo_jax import errors
from dpo_jax.data.batches import evidence, label_noise
from dpo_jax.data.sources import mixture
from dpo_jax.data.text import encode
from dpo_jax.data.text import ledger as ledger_lib
from dpo_jax.data.text import marks as marks_lib
from dpo_jax.data.text.encoders import Tokenizer
from dpo_jax.run import datasets
from dpo_jax.run import inputs as inputs_lib
from dpo_jax.run.datasets import Part
from dpo_jax.storage import caches
from dpo_jax.types import EncodedRecord

_NUM_RECORDS = 3
_BRACKETS = '[[', ']]'
_COLOUR = '\x1b[32;4m', '\x1b[0m'
# Counts of a ledger that are neither reasons nor counters.
_FACTS = {
  'read': 'rows that were read',
  'kept': 'records that were encoded',
  'duplicates': 'records left out because an equal one came before',
  'held_out': 'records that are held out for evaluation',
  'surplus': 'records of the last held-out prompt beyond data.eval_pairs: '
  'neither trained on nor evaluated',
  **evidence.COUNTS,
  **label_noise.COUNTS,
}


def main(
  config: ConfigDict,
  workdir: str = '',
  record: str = '',
  num_records: int = _NUM_RECORDS,
) -> int:
  """--mode=show: prints encoded records and the ledger.

  Args:
    config: validated.
    workdir: a run; not read beyond its config, and not written.
    record: the beginning of a `uid` or `prompt_id` of per_example/*.npz, to
      show these records only.
    num_records: of the training data, and of data.eval if that is a source.
  """
  # A terminal without some letter shows an escape, not a traceback.
  sys.stdout.reconfigure(errors='backslashreplace')
  is_terminal = sys.stdout.isatty() and not os.environ.get('NO_COLOR')
  marks = _COLOUR if is_terminal else _BRACKETS
  with tempfile.TemporaryDirectory() as scratch:
    # The run is not written: what would go into it is thrown away.
    cache = caches.place(config.data.cache_dir, pathlib.Path(scratch))
    inputs = inputs_lib.read(config, cache)
    parts = {'train': inputs.train, 'eval': inputs.evaluation}
    if record:
      chosen = list(find(parts, record))
      if not chosen:
        raise _no_record(record, parts)
    else:
      names = ['train', *(['eval'] if config.data.eval != 'split' else [])]
      chosen = [
        (n, int(i)) for n in names for i in parts[n].indices[:num_records]
      ]
    texts = []
    for name, i in chosen:
      text = describe(inputs.tokenizer, parts[name], name, i, marks)
      texts.append(text)
    sources = _places(config, inputs.tokenizer, parts, chosen)
    texts = [
      f'{text}\nsource: {sources.get(key, "not found again")}'
      for text, key in zip(texts, chosen)
    ]
  for name, ledger in inputs.ledger.items():
    texts.append('\n'.join(explain(name, ledger)))
  try:
    print('\n' + '\n\n'.join(texts), flush=True)
  except BrokenPipeError:
    # A reader such as `| head` has enough: no error, and no traceback when the
    # interpreter flushes at its end.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
  return 0


def find(parts: Mapping[str, Part], record: str) -> Iterator[tuple[str, int]]:
  """Yields (part, index in its store) of the records that an id begins.

  Args:
    parts: by name; records outside of a part's indices are not in it.
    record: the beginning of a uid or of a prompt_id, hex.
  """
  start = record.lower().encode(errors='replace')
  for name, part in parts.items():
    table = part.store.table
    for i in part.indices:
      uid, prompt = bytes(table.uids[i]), bytes(table.prompts[i])
      if uid.startswith(start) or prompt.startswith(start):
        yield name, int(i)


def _places(
  config: ConfigDict,
  tokenizer: Tokenizer,
  parts: Mapping[str, Part],
  chosen: Sequence[tuple[str, int]],
) -> dict[tuple[str, int], str]:
  """The place in its source of each chosen record: `path:line`, by record.

  The token cache holds no places, so the sources are read again, up to the
  last of these records.
  """
  places = {}
  for use in ('train', 'eval'):
    is_split = config.data.eval == 'split'
    wanted = {
      parts[name].store.uids[i]: (name, i)
      for name, i in chosen
      if ('train' if is_split else name) == use
    }
    if wanted:
      found_at = _find_in_sources(config, tokenizer, use, set(wanted))
      places |= {wanted[uid]: place for uid, place in found_at.items()}
  return places


def _find_in_sources(
  config: ConfigDict, tokenizer: Tokenizer, use: str, uids: set[str]
) -> dict[str, str]:
  """{uid: place} of records of data.train or data.eval."""
  names = config_lib.source_names(config.data[use])
  shares = (1.0,) * len(names)
  shares = config_lib.proportions(config) if use == 'train' else shares
  opened = [
    datasets.open_source(config, name, lambda line: None) for name in names
  ]
  options = datasets.encode_options(config, tokenizer, shares)
  options = options._replace(strict=False)
  places: dict[str, str] = {}
  for record in mixture.mix(opened, shares, config.seed):
    for encoded in encode.encode_all([record], tokenizer, options)[0]:
      # The first of equal records is the one that is kept.
      if encoded.uid in uids:
        places.setdefault(encoded.uid, record.where)
    if len(places) == len(uids):
      break
  return places


def describe(
  tokenizer: Tokenizer,
  part: Part,
  name: str,
  index: int,
  marks: tuple[str, str] = _BRACKETS,
) -> str:
  """One record as lines of text.

  Args:
    tokenizer: that encoded it.
    part: the records that it belongs to.
    name: of the part.
    index: of the record in the part's store.
    marks: what stands before and after trained tokens.
  """
  record: EncodedRecord = part.store[index]
  prompt_id = bytes(part.store.table.prompts[index]).decode()
  place = int(np.flatnonzero(part.indices == index)[0]) + 1
  lines = [
    f'{name} record {place:,} of {len(part.indices):,}: uid {record.uid}, '
    f'prompt_id {prompt_id}',
    f'prompt: {_tokens(len(record.prompt))}, none trained',
    _text(tokenizer, (), record.prompt, None, marks),
  ]
  for k, completion in enumerate(record.completions):
    mask = None if record.trained is None else record.trained[k]
    trained = len(completion) if mask is None else int(np.sum(mask))
    facts = [_tokens(len(completion)), f'{trained:,} trained']
    lines.append(f'completion {k}: {", ".join(facts + _judged(record, k))}')
    mask = np.ones(len(completion), bool) if mask is None else mask
    lines.append(_text(tokenizer, record.prompt, completion, mask, marks))
  return '\n'.join(lines)


def explain(name: str, ledger: Mapping[str, Any]) -> list[str]:
  """Returns every count of a ledger with what it counts, a line each.

  Args:
    name: of the part.
    ledger: as Ledger.as_dict, with further counts by name.
  """
  rows = [
    (key, value, _FACTS.get(key, ''))
    for key, value in ledger.items()
    if isinstance(value, int)
  ]
  for reason, (problem, fix) in ledger_lib.REASONS.items():
    count = ledger.get('dropped', {}).get(reason, 0)
    first = ledger.get('first', {}).get(reason)
    where = f' (first: {first})' if first else ''
    rows.append((reason, count, f'dropped: {problem}{where}; fix: {fix}'))
  counters = ledger.get('counters', {})
  rows += [
    (counter, counters.get(counter, 0), sentence)
    for counter, sentence in ledger_lib.COUNTERS.items()
  ]
  width = max(len(key) for key, _, _ in rows)
  return [
    f'{name}, counts:',
    *(
      f'{count:>11,}  {key:<{width}}  {sentence}'.rstrip()
      for key, count, sentence in rows
    ),
  ]


def marked(
  decode: Callable[[Sequence[int]], str],
  before: Sequence[int],
  tokens: Sequence[int],
  mask: np.ndarray | None,
  marks: tuple[str, str],
) -> str:
  """The text of tokens, with the marked ones between two marks.

  Args:
    decode: ids -> text.
    before: the tokens that precede; their text is left out.
    tokens: int [n].
    mask: bool [n]; None = none is marked.
    marks: what stands before and after each stretch of marked tokens.
  """
  pieces = []
  for text, is_marked in marks_lib.stretches(decode, before, tokens, mask):
    piece = _visible(text)
    pieces.append(f'{marks[0]}{piece}{marks[1]}' if is_marked else piece)
  return ''.join(pieces)


def _text(tokenizer, before, tokens, mask, marks) -> str:
  """Text of some tokens, indented."""

  def decode(ids):
    return tokenizer.decode(ids, skip_special=False)

  text = marked(decode, before, tokens, mask, marks)
  return '\n'.join(f'  | {line}' for line in text.split('\n'))


def _visible(text: str) -> str:
  """Text with line breaks shown and no other control character."""
  # Data may hold escape sequences, which a terminal would obey.
  return ''.join(
    '\\n\n' if c == '\n' else c if c.isprintable() else repr(c)[1:-1]
    for c in text
  )


def _judged(record: EncodedRecord, k: int) -> list[str]:
  """What the record says of its completion k, in words."""
  words = []
  for one in record.comparisons:
    if one.winner == one.loser == k:
      words.append('a demonstration')
    elif k == one.winner:
      margin = f', margin {one.margin:g}' if one.margin else ''
      weight = f', weight {one.weight:g}' if one.weight != 1 else ''
      words.append(f'chosen over {one.loser}{margin}{weight}')
    elif k == one.loser:
      words.append(f'rejected for {one.winner}')
  if record.labels is not None:
    words.append('desirable' if record.labels[k] else 'undesirable')
  if record.scores is not None:
    words.append(f'score {record.scores[k]:g}')
  if record.quantiles is not None:
    words.append(f'quantile {record.quantiles[k]:g}')
  return words


def _tokens(count: int) -> str:
  return f'{count:,} token{"" if count == 1 else "s"}'


def _no_record(record: str, parts: Mapping[str, Part]):
  """The refusal of an id that no record has."""
  counts = ' and '.join(
    f'{len(part.indices):,} of {name}' for name, part in parts.items()
  )
  return errors.refuse(
    '--record',
    f'{errors.show(record)} begins no uid or prompt_id of the records '
    f'({counts})',
    'copy one from per_example/*.npz, and give the data of that run '
    '(config.data.eval=FILE for per_example/FILE.npz)',
  )
