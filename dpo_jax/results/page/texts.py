"""Ids of evaluated pairs -> their texts, from the caches of encoded records.

Comes in: runs, and the uids of records. Goes out: the text of prompts and
answers with the trained tokens marked, and a line per run whose texts are not
at hand. A record's uid is the sha256 of its tokens, and the tokenizer must have
the fingerprint that the run noted: what is shown is what was evaluated.
Encodes nothing, needs no jax and writes nothing.
"""

import contextlib
import functools
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from dpo_jax import errors
from dpo_jax.data.text import marks
from dpo_jax.data.text import tokenizer as tokenizer_lib
from dpo_jax.data.text.encoders import Tokenizer
from dpo_jax.results import collect
from dpo_jax.results.page import markup
from dpo_jax.storage import caches, files, run_dir, token_store
from dpo_jax.types import Array, EncodedRecord, InputError

# Characters of one text; a longer one says how many are left out.
MOST = 4000


class Pair(NamedTuple):
  """The texts of one comparison: stretches (text, trained?) of each side."""

  prompt: list[tuple[str, bool]]
  chosen: list[tuple[str, bool]]
  rejected: list[tuple[str, bool]]


class Source(NamedTuple):
  """Where the texts of a run are; `problem` says why there are none."""

  store: token_store.TokenStore | None
  places: Mapping[str, int]  # index in the store, by uid
  tokenizer: Tokenizer | None
  problem: str = ''

  def pair(self, uid: str, number: int, tokens: tuple[int, int]) -> Pair | None:
    """The texts of a comparison.

    Args:
      uid: of its record.
      number: of the comparison in its record.
      tokens: trained tokens of chosen and rejected, as the run saw them; a
        record that has others is not the one.
    """
    if self.problem or uid not in self.places:
      return None
    record = self.store[self.places[uid]]
    if number >= len(record.comparisons):
      return None
    one = record.comparisons[number]
    sides = one.winner, one.loser
    if tuple(_num_trained(record, k) for k in sides) != tokens:
      return None
    decode = functools.partial(self.tokenizer.decode, skip_special=False)
    return Pair(
      _pieces(decode, (), record.prompt, None),
      *(
        _pieces(decode, record.prompt, record.completions[k], _mask(record, k))
        for k in sides
      ),
    )


class Finder:
  """Finds the texts of runs; opens each store and each tokenizer once."""

  def __init__(self):
    """Reads nothing yet."""
    self._stores: dict[files.AnyPath, token_store.TokenStore | str] = {}
    self._places: dict[token_store.TokenStore, dict[str, int]] = {}
    self._tokenizers: dict[str, Tokenizer | str] = {}
    self._sources: dict[files.AnyPath, Source] = {}

  def source(self, run: collect.Run) -> Source:
    """Where the texts of a run's held-out pairs are."""
    if run.path not in self._sources:
      self._sources[run.path] = self._find(run)
    return self._sources[run.path]

  def _find(self, run: collect.Run) -> Source:
    prints = _fingerprints(run)
    if not prints:
      return _none('env.json names no data and no tokenizer')
    wanted = prints.get('eval_data', prints.get('data'))
    uids = set(run.examples.uid.tolist()) if run.examples else set()
    store = self._find_store(run, str(wanted), uids)
    if isinstance(store, str):
      return _none(store)
    tokenizer = self._find_tokenizer(run, str(prints.get('tokenizer')))
    if isinstance(tokenizer, str):
      return _none(tokenizer)
    return Source(store, self._places[store], tokenizer)

  def _find_store(
    self, run: collect.Run, digest: str, uids: set
  ) -> token_store.TokenStore | str:
    """The store of that digest with these records, or why there is none."""
    folders = _cache_folders(run)
    damaged = ''
    for folder in folders:
      for path in sorted((folder / 'tokens').glob('*')):
        if not _has_digest(path, digest):
          continue
        store = self._open(path)
        if isinstance(store, str):
          damaged = store
        elif all(as_text(uid) in self._places[store] for uid in uids):
          return store
    if damaged:
      return damaged
    places = ', '.join(dict.fromkeys(_shown(f, run) for f in folders))
    return (
      f'the encoded records of this data are not in {places}; fix: make the '
      'page where the run was made, with its $DPO_JAX_CACHE, or evaluate the '
      'run again there'
    )

  def _open(self, path: files.AnyPath) -> token_store.TokenStore | str:
    if path not in self._stores:
      try:
        store = token_store.open_store(path)
        self._stores[path] = store
        self._places[store] = {uid: i for i, uid in enumerate(store.uids)}
      except InputError:
        self._stores[path] = (
          'the encoded records of this data are damaged; fix: remove them by '
          '--mode=cache --clear=tokens and evaluate the run again'
        )
    return self._stores[path]

  def _find_tokenizer(self, run: collect.Run, digest: str) -> Tokenizer | str:
    name = _tokenizer_name(run.config)
    if name not in self._tokenizers:
      try:
        self._tokenizers[name] = tokenizer_lib.load(name)
      except InputError:
        self._tokenizers[name] = 'not there'
    loaded = self._tokenizers[name]
    shown = errors.show(name)
    if isinstance(loaded, str):
      return (
        f'its tokenizer {shown} is not at hand; fix: make the page where the '
        'command of the run was given'
      )
    if loaded.fingerprint != digest:
      return (
        f'the tokenizer {shown} is not the one of the run; fix: put the '
        "run's back"
      )
    return loaded


def _none(problem: str) -> Source:
  return Source(None, {}, None, problem)


def _fingerprints(run: collect.Run) -> Mapping[str, Any]:
  try:
    prints = run_dir.RunDir(run.path).env().get('fingerprints')
  except InputError:
    return {}
  return prints if isinstance(prints, Mapping) else {}


def _cache_folders(run: collect.Run) -> list[files.AnyPath]:
  """Folders that may hold a run's encoded records, each once."""
  data = run.config.get('data')
  given = data.get('cache_dir') if isinstance(data, Mapping) else ''
  own = [parent / 'cache' for parent in (run.path, *run.path.parents[:3])]
  folders = [*own, caches.folder()]
  # A store that cannot be used here has no records.
  with contextlib.suppress(InputError):
    folders = [*([files.at(given)] if given else []), *folders]
  return list(dict.fromkeys(folders))


def _shown(folder: files.AnyPath, run: collect.Run) -> str:
  """A cache folder in words: a page must not depend on who made it."""
  if folder == caches.folder():
    return "the user's cache"
  for parent, words in (
    (run.path, "the run's cache"),
    (run.path.parent, "the sweep's cache"),
  ):
    if folder == parent / 'cache':
      return words
  if folder.name == 'cache' and folder.parent in run.path.parents:
    return 'the folders above'
  return 'config.data.cache_dir'


def _has_digest(path: files.AnyPath, digest: str) -> bool:
  """Whether meta.json names these tokens; a look before all is verified."""
  try:
    return f'"{digest}"'.encode() in (path / 'meta.json').read_bytes()
  except OSError:
    return False


def _tokenizer_name(config: Mapping[str, Any], depth: int = 0) -> str:
  """The tokenizer of a config, or of the run that it starts from."""
  model = config.get('model')
  start = model.get('init_from', '') if isinstance(model, Mapping) else ''
  if config.get('tokenizer') or not start or depth > 8:
    return str(config.get('tokenizer') or '')
  try:
    if (files.at(start) / 'model.json').is_file():
      return _tokenizer_name(run_dir.RunDir(start).config(), depth + 1)
  except InputError:  # also a store that cannot be used here
    return ''
  return os.fspath(start)


def _pieces(
  decode: Callable, before: Array, tokens: Array, mask: Array | None
) -> list[tuple[str, bool]]:
  """Stretches of visible text, at most `MOST` characters in all."""
  pieces, left = [], MOST
  for text, is_trained in marks.stretches(decode, before, tokens, mask):
    if left <= 0:
      return [*pieces, (' … (the rest is left out)', False)]
    pieces.append((markup.visible(text, left), is_trained))
    left -= len(text)
  return pieces


def _mask(record: EncodedRecord, k: int) -> Array:
  if record.trained is None:
    return np.ones(len(record.completions[k]), bool)
  return record.trained[k]


def _num_trained(record: EncodedRecord, k: int) -> int:
  return int(np.sum(_mask(record, k)))


def as_text(uid: Any) -> str:
  """An id of an npz file as text."""
  return uid.decode(errors='replace') if isinstance(uid, bytes) else str(uid)


def numbered(uids: np.ndarray) -> Iterator[tuple[str, int]]:
  """Yields (uid, number of the comparison in its record) of each comparison."""
  seen: dict[str, int] = {}
  for uid in uids.tolist():
    text = as_text(uid)
    yield text, seen.get(text, 0)
    seen[text] = seen.get(text, 0) + 1
