"""source -> records: a data file or a named public set, checked row by row.

Comes in: a path (see files.py for its kinds) or `tfds:NAME[/CONFIG]:SPLIT`
(see published.py for the names). Goes out: a Source, whose records can be
iterated any number of times. The format is detected from the first row, and
every other row must have it. A faulty row raises a types.InputError when the
iteration reaches it. Columns that no format reads are named in the log once.
Encodes and drops nothing.
"""

import functools
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NamedTuple

from dpo_jax import errors
from dpo_jax.data.sources import files, foreign, published, records
from dpo_jax.storage import files as storage_files
from dpo_jax.types import PreferenceRecord

TFDS = 'tfds:'

_MOST_KEYS = 1000  # sets of columns that are looked at
_MOST_NAMES = 20  # columns that are named

_Rows = Iterator[tuple[str, dict[str, Any]]]  # (where, row)


class Source(NamedTuple):
  """An opened source of records; holds none of them in memory."""

  name: str  # as the user wrote it
  fingerprint: str  # sha256, hex, of the bytes behind the records
  row_format: str  # a key of records.FORMATS
  records: Callable[[], Iterator[PreferenceRecord]]  # each call: a new iterator


def open_source(
  name_or_path: str | os.PathLike,
  *,
  row_format: str = 'auto',
  use_token_ids: bool = False,
  columns: str = '',
  needs: Collection[str] = (),
  log: Callable[[str], None] = lambda line: None,
  manual_dir: str | os.PathLike | None = None,
  data_dir: str | os.PathLike | None = None,
) -> Source:
  """Opens a source and checks its first row.

  Args:
    name_or_path: a data file, or `tfds:NAME[/CONFIG]:SPLIT` such as
      `tfds:hh_rlhf/harmless-base:train` or `tfds:shp/askvet:test[:100]`.
    row_format: a key of records.FORMATS, or 'auto' to detect it.
    use_token_ids: if the first row has `*_ids` columns, train on these and
      ignore the text.
    columns: renames of a file's columns, see foreign.parse_renames.
    needs: any of 'margin', 'scores' and 'reference_scores': a row that lacks
      one is refused if it is null there, or if other rows have it.
    log: takes a line that names columns that are not read.
    manual_dir: the folder with the downloaded files of public sets; by
      default `downloads/manual` in data_dir.
    data_dir: the folder of prepared TFDS sets; by default $TFDS_DATA_DIR or
      ~/tensorflow_datasets.

  Returns:
    The Source. Its first row is valid; the others are checked when iterated.

  Raises:
    InputError: one line `where: problem; fix: ...`.
  """
  name = os.fspath(name_or_path)
  _check_format(row_format)
  if name.startswith(TFDS):
    rows, make_fingerprint = _tfds_rows(name, manual_dir, data_dir)
  else:
    path = os.path.expanduser(name)
    rows = functools.partial(_file_rows, path, foreign.parse_renames(columns))
    make_fingerprint = functools.partial(_file_fingerprint, path, columns)
  # `rows` makes a new iterator per call: the first row is read again later.
  where, first = next(rows(), (f'{name}:0', None))
  if first is None:
    raise errors.refuse(where, 'no rows in it', 'write or copy it again')
  if use_token_ids and any(key.endswith('_ids') for key in first):
    row_format = 'token_ids'
  # A format that the user names is not compared with the columns.
  is_detected = row_format == 'auto'
  if is_detected:
    row_format = records.detect_format(first, where)
  records.parse_row(first, row_format, where=where)
  unread = _Unread(name, row_format, log)
  unread.see(first, where)

  def iterate() -> Iterator[PreferenceRecord]:
    for where, row in _with_needs(rows, needs):
      if is_detected:
        _same_format(row, row_format, where)
      yield records.parse_row(row, row_format, where=where)
      unread.see(row, where)

  return Source(name, make_fingerprint(), row_format, iterate)


class _Unread:
  """The columns of a source that are not read, each named once."""

  def __init__(self, name: str, row_format: str, log: Callable[[str], None]):
    self._name = name
    self._row_format = row_format
    self._log = log
    self._seen: set[tuple[str, ...]] = set()  # sets of columns
    self._named: set[str] = set()

  def see(self, row: dict[str, Any], where: str) -> None:
    """Logs the columns of a row that are not read, if they are new."""
    keys = tuple(row)
    # Rows of one file have the same columns, or nearly so.
    if keys in self._seen or len(self._seen) > _MOST_KEYS:
      return
    self._seen.add(keys)
    names = records.names_unread(row, self._row_format, where)
    new = [name for name in names if name not in self._named]
    if new and len(self._named) < _MOST_NAMES:
      place = where if self._named else self._name
      shown = ', '.join(map(_shown, new[:_MOST_NAMES]))
      more = f' and {len(new) - _MOST_NAMES} more' * (len(new) > _MOST_NAMES)
      self._log(f'{place}: columns that are not read: {shown}{more}')
    self._named.update(new)


def _shown(name: str) -> str:
  # Only a chat template writes tools; it may be given texts too.
  return errors.show(name, 40) + ' (chats only)' * (name == 'tools')


def _file_rows(path: str, renames: Mapping[str, str]) -> _Rows:
  def is_wanted(name: str) -> bool:
    return name in renames or records.is_known(name)

  for number, row in files.read_rows(path, is_wanted):
    where = f'{path}:{number}'
    yield where, foreign.renamed(row, renames, where) if renames else row


def _file_fingerprint(path: str, columns: str) -> str:
  return storage_files.file_digest(*files.parts(path), text=columns)


def _with_needs(rows: Callable[[], _Rows], needs: Collection[str]) -> _Rows:
  """The rows, of which a lack that a loss cannot bear is refused."""
  first: dict[str, dict[bool, str]] = {need: {} for need in needs}
  for where, row in rows():
    for need, places in first.items():
      is_lacking, is_null = records.lacks(row, need)
      places.setdefault(is_lacking, where)
      if is_null or len(places) == 2:  # rows with it, and rows without it
        num = [records.lacks(other, need)[0] for _, other in rows()]
        raise errors.refuse(
          places[True],
          f'{need!r} is not given (in {sum(num):,} of {len(num):,} rows), and '
          'a chosen loss reads it',
          f'give {need!r} in every row, drop these rows, or use another loss',
        )
    yield where, row


def _tfds_rows(
  name: str,
  manual_dir: str | os.PathLike | None,
  data_dir: str | os.PathLike | None,
) -> tuple[Callable[[], _Rows], Callable[[], str]]:
  asked = published.parse_name(name.removeprefix(TFDS), where=name)
  # Imported here: TFDS takes seconds to import.
  from dpo_jax.data.sources import tfds_sets

  prepared = tfds_sets.prepare(
    asked, where=name, manual_dir=manual_dir, data_dir=data_dir
  )

  def rows() -> _Rows:
    for index, row in enumerate(tfds_sets.read(prepared)):
      yield f'{name}[{index}]', row

  return rows, lambda: prepared.fingerprint


def _check_format(row_format: str) -> None:
  if row_format not in ('auto', *records.FORMATS):
    raise errors.refuse(
      'config.data.row_format',
      f'unknown row format {row_format!r}',
      f"{errors.did_you_mean(row_format, records.FORMATS)}use 'auto' or one of "
      f'{", ".join(records.FORMATS)}',
    )


def _same_format(row: dict[str, Any], row_format: str, where: str) -> None:
  other = records.detect_format(row, where)
  if other != row_format:
    raise errors.refuse(
      where,
      f'mixed formats: the first row is {row_format!r} '
      f'({records.FORMATS[row_format]}), this one is {other!r} '
      f'({records.FORMATS[other]})',
      'give each format a file of its own',
    )
