"""run_dir.py: new, continued, refused; nothing left behind."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from dpo_jax import types
from dpo_jax.storage import run_dir

_CONFIG = {
  'seed': 0,
  'loss': {'beta': 0.1, 'terms': {'sigmoid': 1.0}},
  'data': {'train': ('a.jsonl', 'b.jsonl')},
  'train': {'num_steps': 10, 'save_every': 1},
}


def changed(**sections):
  return _CONFIG | {k: _CONFIG[k] | v for k, v in sections.items()}


def made(path, **kwargs):
  run = run_dir.RunDir(path, **kwargs)
  run.create_or_continue(_CONFIG)
  return run


def test_new_then_continued(tmp_path):
  run = run_dir.RunDir(tmp_path / 'a' / 'b')
  assert not run.check(_CONFIG) and os.listdir(tmp_path) == []
  assert not run.create_or_continue(_CONFIG)
  assert run_dir.RunDir(tmp_path / 'a' / 'b').create_or_continue(_CONFIG)
  assert run.config()['data']['train'] == ['a.jsonl', 'b.jsonl']
  assert sorted(os.listdir(run.path)) == ['.lock', 'config.json']


def test_another_config_names_the_keys_and_changes_nothing(tmp_path):
  run = made(tmp_path / 'w')
  before = (run.path / 'config.json').read_bytes()
  other = changed(loss={'beta': 0.2, 'tau': 1}, train={'num_steps': 20})
  other.pop('seed')
  with pytest.raises(types.InputError) as error:
    made(tmp_path / 'w').create_or_continue(other)
  assert str(error.value) == (
    f'{run.path}/config.json: holds a run of another config: config.loss.beta '
    'is 0.1 there and 0.2 now; config.loss.tau is "absent" there and 1 now; '
    'config.train.num_steps is 10 there and 20 now (and 1 more); fix: give a '
    'new --workdir, or the values that are there'
  )
  assert (run.path / 'config.json').read_bytes() == before


def test_equal_values_are_not_another_config(tmp_path):
  run = run_dir.RunDir(tmp_path)
  run.create_or_continue({'a': 1, 'b': float('nan'), 'c': (1, 2), 'd': True})
  assert run.check({'a': 1.0, 'b': float('nan'), 'c': [1, 2], 'd': True})
  with pytest.raises(types.InputError, match='config.d is true there and 1'):
    run.check({'a': 1, 'b': float('nan'), 'c': [1, 2], 'd': 1})


@pytest.mark.parametrize('allowed', ['train.num_steps', 'train'])
def test_keys_that_may_change_void_done(tmp_path, allowed):
  run = made(tmp_path, may_change=[allowed])
  assert not run.is_done() and run.done_facts() == {}
  run.mark_done(step=10)
  assert run.is_done() and run.is_done(_CONFIG)
  longer = changed(train={'num_steps': 20})
  assert not run.is_done(longer)
  assert run.create_or_continue(longer)
  assert not run.is_done() and run.done_facts()['step'] == 10
  assert run.config()['train']['num_steps'] == 20
  with pytest.raises(types.InputError, match='config.loss.beta'):
    run.create_or_continue(changed(loss={'beta': 1}))


def test_a_workdir_that_cannot_be_is_one_line(tmp_path):
  (tmp_path / 'file').write_text('mine')
  for path, words in [
    (tmp_path / 'file', ': a file; fix: give --workdir a folder'),
    (tmp_path / 'file' / 'below', 'cannot be read (Not a directory); fix: '),
    (pathlib.Path('/proc/no/such'), 'No such file or directory; fix: '),
    (tmp_path / ('x' * 300), 'File name too long; fix: '),
  ]:
    with pytest.raises(types.InputError) as error:
      made(path)
    assert words in str(error.value) and '\n' not in str(error.value)
  assert os.listdir(tmp_path) == ['file']


def test_a_failure_half_way_leaves_no_folder(tmp_path, monkeypatch):
  def full(*_):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(os, 'fsync', full)
  with pytest.raises(types.InputError, match='No space left on device; fix'):
    made(tmp_path / 'a' / 'b')
  assert os.listdir(tmp_path) == []


def test_no_permission():
  refused = '/sys/none: .*(denied|not permitted|Read-only).*; fix'
  with pytest.raises(types.InputError, match=refused):
    made('/sys/none')  # where not even root may make a folder


_HOLDER = """
import fcntl, sys
file = open(sys.argv[1], 'ab')
fcntl.lockf(file, fcntl.LOCK_EX)
print('held', flush=True)
sys.stdin.read()
"""


def test_another_process_is_kept_out_until_it_ends(tmp_path):
  lock = made(tmp_path).path / '.lock'
  command = [sys.executable, '-c', _HOLDER, lock]
  pipe = subprocess.PIPE
  made(tmp_path).close()
  with subprocess.Popen(command, stdin=pipe, stdout=pipe) as holder:
    assert holder.stdout.readline() == b'held\n'
    with pytest.raises(types.InputError, match='another process is writing'):
      made(tmp_path)
  assert made(tmp_path).config()['seed'] == 0


def test_reading_what_is_no_run(tmp_path):
  with pytest.raises(types.InputError, match='not a run .no config.json.'):
    run_dir.RunDir(tmp_path).config()
  (tmp_path / 'config.json').write_text('{')
  with pytest.raises(types.InputError, match='config.json: not JSON'):
    run_dir.RunDir(tmp_path).check(_CONFIG)


def test_environment_says_what_bits_depend_on(tmp_path, monkeypatch):
  run = made(tmp_path)
  prints = {'data': {'train': 'abc'}}
  assert run.write_env(prints, argv=['x']) == []
  first = json.loads((tmp_path / 'env.json').read_text())
  assert first['jax'] == jax.__version__ and first['num_devices'] == 8
  assert first['fingerprints'] == prints and first['command'] == ['x']
  assert run.write_env(prints, argv=['y']) == []
  monkeypatch.setenv('XLA_FLAGS', '--other')
  old_flags = first['XLA_FLAGS']
  assert run.write_env({'data': {'train': 'abd'}}) == [
    f"XLA_FLAGS: {old_flags!r} then, '--other' now",
    "fingerprints.data.train: 'abc' then, 'abd' now",
  ]
  kept = json.loads((tmp_path / 'env.json').read_text())
  assert len(kept.pop('continued')) == 2 and kept == first


def test_per_example_arrays_come_back(tmp_path):
  run = made(tmp_path)
  arrays = {'uid': np.array(['ab', 'cd']), 'policy_chosen': np.float32([1, 2])}
  run.write_per_example('eval_10', arrays)
  loaded = np.load(tmp_path / 'per_example' / 'eval_10.npz')
  assert loaded['uid'].tolist() == ['ab', 'cd']
  assert loaded['policy_chosen'].dtype == np.float32
  assert os.listdir(tmp_path / 'per_example') == ['eval_10.npz']
  for bad in ({'x': np.zeros(2), 'y': np.zeros(3)}, {'x': [object()]}):
    with pytest.raises(ValueError, match='per_example/e'):
      run.write_per_example('e', bad)


def test_a_mark_by_hand_counts_for_every_config(tmp_path):
  run = made(tmp_path)
  (tmp_path / 'DONE').touch()
  assert run.is_done() and run.is_done({}) and run.done_facts() == {}
  (tmp_path / 'DONE').write_text('done')
  with pytest.raises(types.InputError, match='DONE: not JSON .*; fix: put'):
    run.is_done()


@pytest.mark.parametrize('text', ['{}', '{"last_step": 9}'])
def test_a_mark_without_a_config_is_none(tmp_path, text):
  run = made(tmp_path)
  (tmp_path / 'DONE').write_text(text)
  with pytest.raises(
    types.InputError, match='DONE: no config in it; fix: remove'
  ):
    run.is_done()
  run.mark_done(last_step=9)
  assert run.is_done() and run.done_facts()['last_step'] == 9
