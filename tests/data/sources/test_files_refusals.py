"""Files that must be refused: one line with path, line, problem and fix.

The faults are those that users of other trainers reported.
"""

import gzip
import io
import json
import os
import random
import re
import zlib

import pyarrow
import pyarrow.parquet
import pytest

from dpo_jax import types
from dpo_jax.data.sources import jsonl
from dpo_jax.data.sources import source as sources

OK = b'{"prompt": "p", "chosen": "c", "rejected": "r"}\n'
CHAT = (
  b'{"prompt": [{"role": "user", "content": "u"}], '
  b'"chosen": [{"role": "assistant", "content": "a"}], '
  b'"rejected": [{"role": "assistant", "content": "b"}]}\n'
)
RANKED = b'{"prompt": "p", "completions": ["a", "b"], "scores": [1, 2]}\n'


def _with(key, value):
  return OK.replace(b'}\n', b', "%b": %b}\n' % (key, value))


def _unsound_gzip():
  data = bytearray(gzip.compress(OK * 100))
  data[-6] ^= 1  # in the CRC
  return bytes(data)


def _parquet(**columns):
  file = io.BytesIO()
  pyarrow.parquet.write_table(pyarrow.table(columns), file)
  return file.getvalue()


PAIRS = _parquet(prompt=['p'], chosen=['c'], rejected=['r'])
NOISE = random.Random(0).randbytes(4000).hex().encode()  # barely compressible

# (id, file name, bytes, line, parts of the message)
FILES = [
  ('empty', 'a.jsonl', b'', 0, ['empty']),
  ('empty gzip', 'a.jsonl.gz', gzip.compress(b''), 0, ['no rows']),
  ('blank lines only', 'a.jsonl', b'\n \r\n\n', 0, ['no rows']),
  ('mark only', 'a.jsonl', b'\xef\xbb\xbf', 0, ['no rows']),
  ('no rows in parquet', 'a.parquet', _parquet(prompt=[]), 0, ['no rows']),
  ('truncated gzip', 'a.jsonl.gz', gzip.compress(OK * 3 + NOISE)[:-900], 4,
   ['truncated']),
  ('unsound gzip', 'a.jsonl.gz', _unsound_gzip(), 101, ['CRC']),
  ('text named gzip', 'a.jsonl.gz', OK, 0, ['not gzip data', '.gz']),
  ('gzip named text', 'a.jsonl', gzip.compress(OK), 0, ['gzip', 'rename']),
  ('gzip named json', 'a.json', gzip.compress(OK), 0, ['gzip', 'rename']),
  ('gzip twice', 'a.jsonl.gz', gzip.compress(gzip.compress(OK)), 1,
   ['gzip data inside gzip']),
  ('zip', 'a.jsonl', b'PK\x03\x04aaaa', 0, ['zip archive', 'unpack']),
  ('zstd', 'a.jsonl', b'\x28\xb5\x2f\xfdaaa', 0, ['zstd -d']),
  ('text named parquet', 'a.parquet', OK, 0, ['not Parquet data']),
  ('parquet named text', 'a.jsonl', PAIRS, 0, ['Parquet', 'rename']),
  ('cut parquet', 'a.parquet', PAIRS[:-9], 0, ['damaged Parquet']),
  ('latin-1', 'a.jsonl', OK + OK.replace(b'p"', b'\xe9"'), 2,
   ['not UTF-8', '0xe9', 'iconv']),
  ('UTF-16', 'a.jsonl', OK.decode().encode('utf-16'), 1, ['UTF-16', 'iconv']),
  ('UTF-16 no mark', 'a.jsonl', OK.decode().encode('utf-16-le'), 1,
   ['UTF-16']),
  ('UTF-16 without NUL', 'a.jsonl', '\u4f60\u597d'.encode('utf-16'), 1,
   ['UTF-16']),
  ('UTF-32', 'a.jsonl', OK.decode().encode('utf-32'), 1, ['UTF-32']),
  ('raw NUL', 'a.jsonl', OK + OK.replace(b'c"', b'\0"'), 2, ['raw NUL byte']),
  ('NUL at the end', 'a.jsonl', OK + b'\0' * 64, 2, ['raw NUL byte', 'crash']),
  ('not JSON', 'a.jsonl', OK + b'hello there\n', 2, ['not JSON', 'hello']),
  ('single quotes', 'a.jsonl', b"{'prompt': 'p'}\n", 1, ['double quotes']),
  ('bare word', 'a.jsonl', b'{"prompt": None}\n', 1, ['not JSON', 'None']),
  ('two objects', 'a.jsonl', OK.strip() + b' ' + OK, 1, ['two objects']),
  ('two with comma', 'a.jsonl', OK.strip() + b', ' + OK, 1, ['two objects']),
  ('trailing comma', 'a.jsonl', OK.strip() + b',\n', 1, ['text after']),
  ('several lines', 'a.jsonl', json.dumps(json.loads(OK), indent=2).encode(),
   1, ['several lines', 'jq -c']),
  ('cut off', 'a.jsonl', OK + OK[:25], 2, ['cut off']),
  ('line break in string', 'a.jsonl', OK.replace(b'c"', b'c\nd"'), 1,
   ['several lines']),
  ('JSON array', 'a.json', b'[' + OK.strip() + b']', 1,
   ['JSON array', "jq -c '.[]'"]),
  ('JSON array, lines', 'a.json', b'[\n' + OK + b']', 1, ['JSON array']),
  ('string', 'a.jsonl', b'"hello"\n', 1, ['a str, not an object']),
  ('null line', 'a.jsonl', OK + b'null\n', 2, ['null, not an object']),
  ('repeated key', 'a.jsonl', b'{"prompt": "a", "prompt": "b"}', 1,
   ["'prompt' appears twice"]),
  ('deep', 'a.jsonl', b'{"prompt": ' + b'[' * 100000, 1, ['not usable JSON']),
  ('huge int', 'a.jsonl', _with(b'margin', b'9' * 5000), 1, ['not usable']),
  ('git-lfs', 'a.jsonl', b'version https://git-lfs.github.com/spec/v1\n', 1,
   ['git-lfs pointer', 'git lfs pull']),
  ('git-lfs named gzip', 'a.jsonl.gz',
   b'version https://git-lfs.github.com/spec/v1\noid sha256:0\n', 1,
   ['git lfs pull']),
  ('HTML', 'a.jsonl', b'<!DOCTYPE html>\n<html>', 1, ['HTML', 'download']),
  ('HTML named parquet', 'a.parquet', b'\n<html><body>', 1, ['HTML']),
  ('XML', 'a.jsonl', b'<Error><Code>AccessDenied', 1, ['HTML or XML']),
  ('CSV', 'a.jsonl', b'prompt,chosen,rejected\na,b,c\n', 1, ['CSV']),
  ('TSV', 'a.jsonl', b'prompt\tchosen\n', 1, ['CSV', 'convert']),
  ('merge marker', 'a.jsonl', OK + b'<<<<<<< HEAD\n' + OK, 2,
   ['merge marker', 'resolve']),
  ('merge marker end', 'a.jsonl', OK + b'>>>>>>> branch\n', 2, ['merge']),
  ('long line', 'a.jsonl', OK + b'{"prompt": "' + b'x' * 10**7 + b'"}\n', 2,
   ['longer than 8 MiB']),
  ('long line in gzip', 'a.jsonl.gz',
   gzip.compress(OK + b'x' * (jsonl.MAX_LINE_BYTES + 1)), 2, ['8 MiB']),
  ('unknown extension', 'a.txt', OK, 0, ["'.txt'", '.jsonl.gz', '.parquet']),
  ('CSV by name', 'a.csv', b'prompt,chosen\n', 0, ["extension '.csv'"]),
  ('key missing', 'a.jsonl', OK + b'{"prompt": "p", "chosen": "c"}\n', 2,
   ["key 'rejected' is missing"]),
  ('key misspelt', 'a.jsonl', OK.replace(b'chosen', b'choosen'), 1,
   ["did you mean 'chosen' by 'choosen'?", 'rename']),
  ('key misspelt beside messages', 'a.jsonl',
   b'{"prompt": "p", "choosen": "c", "rejcted": "r", "messages": []}', 1,
   ["did you mean 'chosen' by 'choosen'?"]),
  ('prompt misspelt', 'a.jsonl', OK.replace(b'prompt', b'promt'), 1,
   ["did you mean 'prompt' by 'promt'?"]),
  ('scores misspelt', 'a.jsonl', RANKED.replace(b'scores', b'score'), 1,
   ["did you mean 'scores' by 'score'?"]),
  ('unknown columns', 'a.jsonl', b'{"question": "q", "answer": "a"}', 1,
   ['unknown set of columns', "'question', 'answer'"]),
  ('no columns', 'a.jsonl', b'{}', 1, ['unknown set of columns (none)']),
  ('null', 'a.jsonl', OK + OK.replace(b'"c"', b'null'), 2,
   ["'chosen' is null"]),
  ('wrong type', 'a.jsonl', OK.replace(b'"c"', b'5'), 1,
   ["'chosen' is int 5, not a string"]),
  ('wrong type, object', 'a.jsonl', OK.replace(b'"p"', b'{"a": 1}'), 1,
   ["'prompt' is dict"]),
  ('string in a chat', 'a.jsonl',
   CHAT.replace(b'[{"role": "assistant", "content": "a"}]', b'"a"'), 1,
   ["'chosen' is str 'a', not a list of messages"]),
  ('unknown role', 'a.jsonl', CHAT.replace(b'"user"', b'"usr"'), 1,
   ["role 'usr' in prompt[0]; fix: did you mean 'user'?"]),
  ('role by another name', 'a.jsonl', CHAT.replace(b'"user"', b'"human"'), 1,
   ["did you mean 'user'?"]),
  ('no content', 'a.jsonl', CHAT.replace(b', "content": "a"', b''), 1,
   ["message chosen[0] has no 'content'"]),
  ('null content', 'a.jsonl', CHAT.replace(b'"a"', b'null'), 1,
   ["'chosen[0].content' is null"]),
  ('content in parts', 'a.jsonl', CHAT.replace(b'"a"', b'[{"text": "a"}]'), 1,
   ["'chosen[0].content' is list"]),
  ('other message keys', 'a.jsonl', CHAT.replace(b'role', b'from'), 1,
   ["has no 'role' (its keys: 'from', 'content')"]),
  ('message a string', 'a.jsonl', CHAT.replace(
    b'{"role": "user", "content": "u"}', b'"u"'), 1, ["'prompt[0]' is str"]),
  ('empty conversation', 'a.jsonl', CHAT.replace(
    b'[{"role": "user", "content": "u"}]', b'[]'), 1, ["'prompt' is an empty"]),
  ('mixed formats', 'a.jsonl', OK + b'\n' + RANKED, 3,
   ["mixed formats: the first row is 'pairs'", "'ranked'"]),
  ('mixed text and chat', 'a.jsonl', OK + CHAT, 2, ['mixed', "'chat_pairs'"]),
  ('label lost', 'a.jsonl', b'{"prompt":"p","completion":"c","label":true}\n'
   b'{"prompt":"p","completion":"c"}\n', 2, ['mixed', "'demonstrations'"]),
  ('NaN margin', 'a.jsonl', OK + _with(b'margin', b'NaN'), 2,
   ["'margin' is nan"]),
  ('infinite margin', 'a.jsonl', _with(b'margin', b'Infinity'), 1,
   ["'margin' is inf"]),
  ('overflowing margin', 'a.jsonl', _with(b'margin', b'1e400'), 1, ['is inf']),
  ('float32 overflow', 'a.jsonl', _with(b'margin', b'1e39'), 1, ['1e+39']),
  ('null label', 'a.jsonl', b'{"prompt":"p","completion":"c","label":null}\n',
   1, ["'label' is null"]),
  ('margin as text', 'a.jsonl', _with(b'margin', b'"2"'), 1, ["is str '2'"]),
  ('NaN score', 'a.jsonl', RANKED.replace(b'[1', b'[NaN'), 1,
   ["'scores[0]' is nan"]),
  ('NaN score of a pair', 'a.jsonl',
   _with(b'score_chosen', b'NaN, "score_rejected": 1'), 1,
   ["'score_chosen' is nan"]),
  ('negative weight', 'a.jsonl', _with(b'weight', b'-0.5'), 1,
   ["'weight' is negative: -0.5"]),
  ('NaN weight', 'a.jsonl', _with(b'weight', b'NaN'), 1, ["'weight' is nan"]),
  ('lone surrogate', 'a.jsonl', OK + OK.replace(b'"c"', b'"x\\ud83d"'), 2,
   ['lone surrogate', 'character 2']),
  ('lone surrogate in a chat', 'a.jsonl', CHAT.replace(b'"a"', b'"\\udc00"'),
   1, ["'chosen[0].content' has a lone surrogate"]),
]  # fmt: skip


@pytest.mark.parametrize(
  'name,data,line,parts',
  [case[1:] for case in FILES],
  ids=[case[0].replace(' ', '-') for case in FILES],
)
def test_refused_in_one_line(tmp_path, name, data, line, parts):
  path = tmp_path / name
  path.write_bytes(data)
  with pytest.raises(types.InputError) as caught:
    list(sources.open_source(path).records())
  _assert_one_line(str(caught.value), path, line, parts)
  assert os.listdir(tmp_path) == [name]  # no other file was written


def _assert_one_line(message, path, line, parts):
  assert re.fullmatch(
    rf'{re.escape(str(path))}:{line}: .+; fix: .+', message
  ), message
  assert message.isprintable()  # no line break of any kind
  assert len(message) < 600
  for part in parts:
    assert part in message


def test_the_table_is_long_enough():
  assert len(FILES) >= 40
  assert len({case[0] for case in FILES}) == len(FILES)


LONG = b'"A longer text, so that most faults fall into it \xc3\xa9 \\n."'
SEEDS = {
  'a.jsonl': OK.replace(b'"p"', LONG) * 2,
  'b.jsonl': CHAT.replace(b'"u"', LONG).replace(b'"b"', LONG),
  'c.jsonl': _with(b'score_chosen', b'1.5, "score_rejected": -2, "weight": 1'),
  'd.jsonl': RANKED.replace(b'"a"', LONG) * 2,
  'e.jsonl': b'{"prompt":%b,"completion":"c","label":true}\n' % LONG,
  'f.jsonl': b'{"chosen":"\\n\\nHuman: aaaaaaa\\n\\nAssistant: bbbbbbbb",'
  b'"rejected":"\\n\\nHuman: aaaaaaa\\n\\nAssistant: ccc"}\n',
  'g.jsonl.gz': gzip.compress(OK * 3),
  'h.jsonl': b'{"messages": [{"role": "user", "content": %b}, '
  b'{"role": "assistant", "content": %b}]}\n' % (LONG, LONG),
}
IDS = {
  'i.jsonl': b'{"prompt_ids": [1, 2, 33, 444, 5], "chosen_ids": [3, 41, 77], '
  b'"rejected_ids": [4, 8, 5], "unused": %b}\n' % LONG,
}
PIECES = [
  b'"', b'{', b'}', b'[', b']', b',', b':', b'\\', b'\n', b'\r', b'\0',
  b'\xff', b'\xef\xbb\xbf', b'null', b'true', b'-1', b'NaN', b'1e999', b'{}',
  b'[]', b'""', b'\\ud800', b'\xe2\x80\xa8', b'"role"', b'"chosen":', b' ',
]  # fmt: skip


def _mutate(data, random_):
  data = bytearray(data)
  for _ in range(random_.choice((1, 1, 2))):
    at = random_.randrange(len(data) + 1)
    kind = random_.randrange(4)
    if kind == 0:
      data[at : at + 1] = bytes([random_.randrange(256)])
    elif kind == 1:
      del data[at : at + random_.randint(1, 12)]
    elif kind == 2:
      data[at:at] = random_.choice(PIECES)
    else:
      start = random_.randrange(len(data) + 1)
      data[at:at] = data[start : start + random_.randint(1, 30)]
  return bytes(data)


@pytest.mark.parametrize(
  'seeds,use_token_ids,count', [(SEEDS, False, 1700), (IDS, True, 300)]
)
def test_mutated_files_are_read_or_refused(
  tmp_path, seeds, use_token_ids, count
):
  random_ = random.Random(20)
  read = refused = 0
  for _ in range(count):
    name = random_.choice(sorted(seeds))
    path = tmp_path / name
    path.write_bytes(_mutate(seeds[name], random_))
    try:
      source = sources.open_source(path, use_token_ids=use_token_ids)
      list(source.records())
      read += 1
    except types.InputError as error:
      assert str(error).isprintable() and '; fix: ' in str(error)
      refused += 1
  # Mutations that all pass, or all fail, would test little.
  assert read > count / 10 and refused > count / 10


def test_mutated_decompressed_data_is_read_or_refused(tmp_path):
  # A valid gzip header around mutated deflate data: zlib itself fails.
  random_ = random.Random(7)
  path = tmp_path / 'a.jsonl.gz'
  intact = gzip.compress(OK * 50)
  for _ in range(200):
    data = bytearray(intact)
    data[random_.randrange(10, len(data) - 8)] ^= 1 << random_.randrange(8)
    path.write_bytes(data)
    with pytest.raises((zlib.error, OSError, EOFError)):
      gzip.decompress(bytes(data))
    with pytest.raises(types.InputError):
      list(sources.open_source(path).records())
