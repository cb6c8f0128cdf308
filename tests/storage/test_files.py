"""files.py: whole or not at all, JSON refused by name, digests that stay."""

import contextlib
import json
import math
import os
import pathlib
import subprocess
import sys

import ml_collections
import numpy as np
import pytest

from dpo_jax.storage import files
from dpo_jax.types import InputError

ROOT = pathlib.Path(__file__).resolve().parents[2]


def killed(program, *arguments):
  """Runs a program that ends itself by SIGKILL."""
  head = 'import os, signal, sys\nfrom dpo_jax.storage import files\n'
  command = [sys.executable, '-c', head + program, *map(str, arguments)]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  assert done.returncode == -9, done.stderr


KILL = 'os.kill(os.getpid(), signal.SIGKILL)'


@pytest.mark.parametrize('old', [None, b'old'])
@pytest.mark.parametrize(
  ('before', 'after', 'is_new'),
  [
    (f'os.fsync = lambda _: {KILL}', '', False),
    (f'os.replace = lambda *_: {KILL}', '', False),
    ('', KILL, True),
  ],
  ids=['before the sync', 'before the rename', 'after the rename'],
)
def test_a_kill_leaves_the_old_file_or_the_new_one(
  tmp_path, old, before, after, is_new
):
  path = tmp_path / 'a' / 'file'
  new = b'new' * 100_000
  if old:
    path.parent.mkdir()
    path.write_bytes(old)
  program = f'{before}\nwith files.atomic_file(sys.argv[1]) as file:\n'
  killed(f"{program}  file.write(b'new' * 100_000)\n{after}", path)
  left = path.read_bytes() if path.exists() else None
  assert left == (new if is_new else old)


def test_a_failure_leaves_the_old_file_and_no_scratch(tmp_path):
  path = tmp_path / 'file'
  path.write_bytes(b'old')
  with pytest.raises(RuntimeError):
    with files.atomic_file(path) as file:
      file.write(b'new')
      raise RuntimeError
  assert path.read_bytes() == b'old' and os.listdir(tmp_path) == ['file']


def test_a_kill_leaves_no_folder_of_that_name(tmp_path):
  path = tmp_path / 'a' / 'folder'
  program = 'with files.whole_folder(sys.argv[1]) as folder:\n'
  program += f"  (folder / 'x').write_text('x')\n  {KILL}"
  killed(program, path)
  assert not path.exists()
  with files.whole_folder(path) as folder:
    (folder / 'y').write_text('y')
  assert os.listdir(path) == ['y']


def test_a_folder_appears_with_all_its_files_or_not_at_all(tmp_path):
  path = tmp_path / 'folder'
  with pytest.raises(RuntimeError):
    with files.whole_folder(path) as folder:
      (folder / 'x').write_text('x')
      raise RuntimeError
  assert os.listdir(tmp_path) == []
  path.mkdir()  # an empty one may be there
  with files.whole_folder(path) as folder:
    (folder / 'x').write_text('x')
    assert os.listdir(path) == []
  assert os.listdir(path) == ['x'] and os.listdir(tmp_path) == ['folder']
  with pytest.raises(InputError, match='is there already; fix: give another'):
    with files.whole_folder(path):
      raise AssertionError
  (tmp_path / 'file').write_text('')
  with pytest.raises(InputError, match='file: is there already'):
    with files.whole_folder(tmp_path / 'file'):
      raise AssertionError


def test_a_folder_of_another_process_is_kept_if_it_may_exist(tmp_path):
  path = tmp_path / 'folder'
  for may_exist in (True, False):
    refused = contextlib.nullcontext() if may_exist else pytest.raises(OSError)
    with refused:
      with files.whole_folder(path, may_exist=may_exist) as folder:
        (folder / 'mine').write_text('')
        path.mkdir(exist_ok=True)
        (path / 'theirs').write_text('')
    assert os.listdir(path) == ['theirs']
    assert os.listdir(tmp_path) == ['folder']
    (path / 'theirs').unlink()


def test_storage_errors_name_the_path_and_the_way_out(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(
    InputError, match='file: File exists; fix: remove or rename'
  ):
    files.write_json(tmp_path / 'file' / 'b', {})
  with pytest.raises(InputError, match='^x: no room; fix: '):
    with files.storage_errors('x'):
      raise OSError('no room')


def test_a_text_that_no_such_file_has_is_refused_by_its_first_bytes(tmp_path):
  path = tmp_path / 'config.json'
  with open(path, 'wb') as file:
    file.truncate(2**40)  # takes no room on the disk, and would in memory
  with pytest.raises(InputError, match=f'{path}: larger than 134 MB'):
    files.read_json(path)


def test_a_pipe_or_a_device_is_no_text(tmp_path):
  pipe = tmp_path / 'config.json'
  os.mkfifo(pipe)
  for name in (pipe, '/dev/zero'):
    with pytest.raises(InputError, match=f'{name}: not a regular file'):
      files.read_json(name)


@pytest.mark.parametrize(
  ('content', 'problem'),
  [
    (b'', 'not JSON'),
    (b'{', 'not JSON'),
    (b'{"a": }', 'not JSON'),
    (b'{"a": 1} {"a": 2}', 'not JSON'),
    (b'[' * 100_000, 'not JSON'),
    (b'{"a": ' + b'1' * 5000 + b'}', 'not JSON'),  # Python's limit on digits
    (b'\xff\xfe{}', 'cannot be read'),
    (b'[1]', 'a JSON list, not an object'),
    (b'null', 'a JSON NoneType, not an object'),
    (b'"a"', 'a JSON str, not an object'),
    (b'version https://git-lfs.github.com/spec/v1\n', 'a git-lfs pointer'),
  ],
  ids=lambda x: x if isinstance(x, str) else str(x[:12]),
)
def test_what_is_no_json_object_is_refused_by_name(tmp_path, content, problem):
  path = tmp_path / 'a.json'
  path.write_bytes(content)
  for read in (files.read_json, files.read_json_or_none):
    with pytest.raises(InputError) as error:
      read(path, fix='put it back')
    message = str(error.value)
    assert message.startswith(f'{path}: {problem}') and '\n' not in message
    fix = 'run `git lfs pull`' if 'lfs' in problem else 'put it back'
    assert message.endswith(f'; fix: {fix}')


def test_a_file_that_is_missing_or_no_file(tmp_path):
  path = tmp_path / 'a.json'
  assert files.read_json_or_none(path) is None
  with pytest.raises(InputError, match='a.json: no such file; fix: copy it ag'):
    files.read_json(path)
  with pytest.raises(InputError, match='no such file; fix: give a run'):
    files.read_json(path, fix='mend it', if_missing='give a run')
  path.mkdir()
  for read in (files.read_json, files.read_json_or_none):
    with pytest.raises(InputError, match='a.json: cannot be read .*directory'):
      read(path)


@pytest.mark.parametrize('mark', [b'', b'\xef\xbb\xbf'])
def test_what_is_written_is_read(tmp_path, mark):
  value = {'b': [1, 2.5, None, True], 'a': {'é': '\u2028'}, 'nan': math.inf}
  path = tmp_path / 'a.json'
  files.write_json(path, value)
  path.write_bytes(mark + path.read_bytes())
  assert files.read_json(path) == value
  assert list(files.read_json(path)) == list(value)
  files.write_json(path, value, sort_keys=True)
  assert list(files.read_json(path)) == sorted(value)


def test_parse_object():
  assert files.parse_object('') == {} == files.parse_object('{}')
  assert files.parse_object('{"a": [1]}') == {'a': [1]}
  for text in ('[1]', '{', 'null', '1', '[' * 100_000):
    assert files.parse_object(text) is None


def test_numbers_can_be_parsed_by_the_caller():
  text = '{"a": 1, "b": [1.5, true]}'
  parsed = files.parse_json(text, '', fix='', number=lambda text: f'<{text}>')
  assert parsed == {'a': '<1>', 'b': ['<1.5>', True]}


def test_digests_are_those_of_commit_dd04b5d():
  # run_dir.RunDir.mark_done, token_store.key and checkpoint_record.make wrote
  # these there; users' runs, caches and checkpoints carry such digests.
  config = {
    'seed': 0,
    'loss': {'beta': 0.1, 'terms': {}},
    'data': {'train': ('a.jsonl', 'é'), 'x': None},
    'nan': float('nan'),
  }
  assert files.digest(config) == (
    '98596e8e80f777dd432f6a9723c56bc8f5a3820ec2e9ef9e69c158b4ca1d2b4a'
  )
  assert files.digest(json.loads(json.dumps(config))) == files.digest(config)
  assert files.digest(dict(reversed(config.items()))) == files.digest(config)
  options = {'truncation': 'drop', 'max_length': 512}
  parts = [2, ['a', 'b'], 't', '{{x}}', options]
  assert files.digest(parts)[:32] == 'c2efd0510ce28d4d4fc7a73b7c9d998c'
  record = {
    'step': 3,
    'score': None,
    'leaves': {'params': {'w': [[3], 'float32', 2880179373]}},
    'meta': {'t': [1, 2], 'note': 'é'},
  }
  assert files.digest(record) == (
    '67924856d8f78f5ff833df76d7ea9f66498d45a2b04a20cef3f021c486d892c6'
  )


def test_canonical_refuses_what_json_has_not():
  assert files.canonical({'b': (1,), 'a': None}) == b'{"a": null, "b": [1]}'
  with pytest.raises(ValueError):
    files.canonical({'a': math.nan}, allow_nan=False)
  with pytest.raises(TypeError):
    files.canonical({'a': np.float32(1)})


# sha256 of b'abc': FIPS 180-2, appendix B.1.
ABC = 'ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad'


def test_digests_of_bytes_and_files(tmp_path):
  assert files.bytes_digest([b'abc']) == ABC
  assert files.bytes_digest([b'a', np.frombuffer(b'bc', np.uint8)]) == ABC
  one, two = tmp_path / 'one', tmp_path / 'two'
  one.write_bytes(b'ab')
  two.write_bytes(b'c')
  assert files.file_digest(one, two) == ABC == files.file_digest(one, text='c')
  big = b'0123456789' * 300_000  # several blocks
  two.write_bytes(big)
  assert files.file_digest(two) == files.bytes_digest([big])


def test_flatten_gives_dotted_keys_in_order():
  tree = {'b': {'y': 1, 'x': {}}, 'a': (1, 2), 'c': {'d': {'e': None}}}
  flat = {'b.y': 1, 'b.x': {}, 'a': (1, 2), 'c.d.e': None}
  assert files.flatten(tree) == flat and list(files.flatten(tree)) == list(flat)
  kept = files.flatten(tree, keep=['c.d', 'b.y'])  # b.y is a leaf anyhow
  assert kept == {'b.y': 1, 'b.x': {}, 'a': (1, 2), 'c.d': {'e': None}}
  config = files.flatten(ml_collections.ConfigDict(tree))
  assert list(config) == sorted(flat)  # in the order in which it iterates
  assert config['a'] == (1, 2) and config['c.d.e'] is None
