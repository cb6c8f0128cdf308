"""lines -> rows: an open file of JSON lines.

Comes in: a binary file object, plain or decompressing, and its name. Goes
out: one dict per line, numbered from 1. A line that is not one JSON object in
UTF-8 is a types.InputError that names the line, the likely cause and the fix.
Accepts a byte-order mark, CRLF, blank lines and U+2028 inside strings. Does
not open files and does not look at the keys: see files.py and records.py.
"""

import json
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO

from dpo_jax import errors

MAX_LINE_BYTES = 8 * 2**20  # a longer line is a mistake, not a record

_UTF8_MARK = b'\xef\xbb\xbf'
_UTF16_MARKS = (b'\xff\xfe', b'\xfe\xff')
_MERGE_MARKERS = ('<<<<<<<', '=======', '>>>>>>>', '|||||||')
_JQ_LINES = 'write one JSON object per line (jq -c . FILE > NEW.jsonl)'
_JQ_ARRAY = "write one object per line (jq -c '.[]' FILE > NEW.jsonl)"


def read_rows(file: BinaryIO, path: str) -> Iterator[tuple[int, dict]]:
  """Yields (line number from 1, row) for each line that is not blank."""
  number = 0
  while True:
    number += 1
    where = f'{path}:{number}'
    line = _read_line(file, where)
    if not line:
      return
    if number == 1:
      line = _strip_mark(line, where)
    if line.strip():
      yield number, parse_line(line, where)


def parse_line(line: bytes, where: str) -> dict[str, Any]:
  """Parses one line; `where` is its path:line, for messages."""
  if b'\0' in line:
    raise errors.refuse(
      where,
      f'raw NUL byte at byte {line.index(0) + 1}',
      'write the file again; it is not text, or it was cut off by a crash',
    )
  try:
    text = line.decode('utf-8')
  except UnicodeDecodeError as error:
    raise errors.refuse(
      where,
      f'not UTF-8: byte 0x{line[error.start]:02x} at byte {error.start + 1}',
      'convert it (iconv -f LATIN1 -t UTF-8 FILE > NEW.jsonl)',
    ) from None
  try:
    row = _DECODER.decode(text)
  except json.JSONDecodeError as error:
    raise _diagnose(text, error, where) from None
  # Nested too deeply, a key given twice, or an integer of too many digits.
  except (RecursionError, ValueError) as error:
    raise errors.refuse(
      where, f'not usable JSON: {error}', 'correct this line'
    ) from None
  if not isinstance(row, dict):
    raise _not_an_object(text, row, where)
  return row


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  """The object of these pairs; Python's own would keep the last of two."""
  row = dict(pairs)
  if len(row) < len(pairs):
    keys = [key for key, _ in pairs]
    twice = next(key for key in keys if keys.count(key) > 1)
    raise ValueError(f'key {errors.show(twice)} appears twice in one object')
  return row


_DECODER = json.JSONDecoder(object_pairs_hook=_unique_keys)


def _read_line(file: BinaryIO, where: str) -> bytes:
  """The next line, b'' at the end of the file."""
  try:
    # One byte more than allowed, to tell a line of full length from a longer.
    line = file.readline(MAX_LINE_BYTES + 1)
  except EOFError:
    raise errors.refuse(
      where,
      'the gzip data ends in the middle (truncated file)',
      'copy or download the file again',
    ) from None
  except (OSError, zlib.error) as error:
    raise errors.refuse(
      where, f'cannot be read: {error}', 'copy or download the file again'
    ) from None
  if len(line) > MAX_LINE_BYTES:
    raise errors.refuse(
      where,
      f'line longer than {MAX_LINE_BYTES // 2**20} MiB',
      'split or drop this record; if the whole file is one line, ' + _JQ_LINES,
    )
  return line


def _strip_mark(line: bytes, where: str) -> bytes:
  """Returns the first line without its byte-order mark."""
  if line.startswith(b'\x1f\x8b'):
    raise errors.refuse(
      where, 'gzip data inside gzip data', 'decompress it once (gzip -d)'
    )
  if line.startswith(_UTF16_MARKS) or b'\0' in line[:4]:
    raise errors.refuse(
      where,
      'UTF-16 or UTF-32 text, not UTF-8',
      'convert it (iconv -f UTF-16 -t UTF-8 FILE > NEW.jsonl)',
    )
  return line.removeprefix(_UTF8_MARK)


def _diagnose(text: str, error: json.JSONDecodeError, where: str) -> Exception:
  """The error for a line that is not JSON, with its most likely cause."""
  # By the first characters, then by where and how the decoder stopped.
  start = text.strip()
  if start.startswith(_MERGE_MARKERS):
    return errors.refuse(
      where,
      f'merge marker {start[:7]!r}',
      'resolve the merge conflict and write the file again',
    )
  if start.startswith('['):
    return errors.refuse(where, 'a JSON array, not an object', _JQ_ARRAY)
  if not start.startswith('{'):
    return _not_json(start, where)
  rest = text[error.pos :].strip()
  if error.msg == 'Extra data':
    if rest.lstrip(', ').startswith('{'):
      return errors.refuse(where, 'two objects on one line', _JQ_LINES)
    return errors.refuse(
      where, f'text after the object: {errors.show(rest)}', _JQ_LINES
    )
  # Nothing is left to read, or a string has no end.
  if not rest or error.msg.startswith('Unterminated string'):
    return errors.refuse(
      where,
      'the line ends inside an object (cut off, or an object over several '
      'lines)',
      _JQ_LINES,
    )
  return errors.refuse(
    where,
    f'not JSON: {error.msg} at column {error.colno}: '
    f'{errors.show(text[error.pos : error.pos + 40])}',
    'correct this line; strings and keys need double quotes',
  )


def _not_json(start: str, where: str) -> Exception:
  if start.startswith('<'):
    return errors.refuse(
      where,
      f'an HTML or XML page, not JSON: {errors.show(start, 40)}',
      'download the data file itself, not the page that shows it',
    )
  # A header line of CSV can only be the first line.
  if where.endswith(':1') and (',' in start or '\t' in start):
    return errors.refuse(
      where,
      f'looks like CSV, not JSON: {errors.show(start, 40)}',
      'convert it to one JSON object per line with keys such as prompt, '
      'chosen, rejected',
    )
  return errors.refuse(where, f'not JSON: {errors.show(start, 40)}', _JQ_LINES)


def _not_an_object(text: str, row: Any, where: str) -> Exception:
  if isinstance(row, list):
    return errors.refuse(where, 'a JSON array, not an object', _JQ_ARRAY)
  name = 'null' if row is None else f'a {type(row).__name__}'
  return errors.refuse(
    where,
    f'{name}, not an object: {errors.show(text.strip(), 40)}',
    'write one object per line with keys such as prompt, chosen, rejected',
  )
