"""checkpoints.py: kills, flips, faults and mismatches, on tiny states."""

import os
import pathlib
import random
import resource
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax import tree, types
from dpo_jax.storage import checkpoints

_REPO = pathlib.Path(__file__).resolve().parents[2]


def state(n):
  """A small train state that depends on n in every item."""
  rng = np.random.default_rng(n)
  kernel = rng.normal(size=(8, 12)).astype(np.float32)
  return {
    'params': {
      'a': {'kernel': jnp.asarray(kernel), 'empty': jnp.zeros((0, 3))},
      'b': jnp.asarray(kernel[0]).astype(jnp.bfloat16),
    },
    'opt_state': (jnp.int32(n), [jnp.asarray(kernel * 2)], None),
    'loss_state': {},
    'rng': jax.random.key_data(jax.random.key(n)),
    'data': {'position': np.int64(2**40 + n)},  # past float32 and int32
  }


def abstract(n=0):
  def stand_in(leaf):
    if isinstance(leaf, jax.Array):
      return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
    return leaf

  return jax.tree.map(stand_in, state(n))


def save_steps(folder, steps, items=None):
  with checkpoints.Checkpoints(folder) as saver:
    for n in steps:
      assert saver.save(n, (items or state)(n), {'step': n, 'pair': (1, 2)})


def restore(folder, items=None):
  """Returns (restored, lines) of a fresh reader; its bits are checked."""
  lines, items = [], items or state
  with checkpoints.Checkpoints(folder, log=lines.append) as reader:
    restored = reader.restore_latest(items(0))
  if restored is not None:
    saved = items(restored.step)
    assert tree.fingerprint(restored.items) == tree.fingerprint(saved)
    assert restored.meta == {'step': restored.step, 'pair': [1, 2]}
  return restored, lines


def test_round_trip_keeps_bits_types_and_structure(tmp_path):
  save_steps(tmp_path / 'c', [3])
  restored, lines = restore(tmp_path / 'c')
  assert restored.step == 3 and lines == []
  assert jax.tree.structure(restored.items) == jax.tree.structure(state(3))
  assert isinstance(restored.items['data']['position'], np.ndarray)
  assert isinstance(restored.items['params']['b'], jax.Array)
  assert os.listdir(tmp_path / 'c') == ['3']  # nothing half-done beside it


def test_a_folder_of_a_name_that_main_allows(tmp_path):
  names = ('a:b', '-{a b}%41#~é$.|!&;<>()^@=,+`"')
  for name in names:
    save_steps(tmp_path / name / 'c', [1])
    assert restore(tmp_path / name / 'c')[0].step == 1
    assert os.listdir(tmp_path / name) == ['c']
  assert sorted(os.listdir(tmp_path)) == sorted(names)


def test_nothing_there_is_none_and_leaves_nothing(tmp_path):
  restored, lines = restore(tmp_path / 'c')
  assert restored is None and lines == [] and os.listdir(tmp_path) == []


def test_an_empty_folder_named_3_is_no_step(tmp_path):
  save_steps(tmp_path, [1, 2])
  (tmp_path / '3').mkdir()
  restored, lines = restore(tmp_path)
  assert restored.step == 2
  assert lines == [f'{tmp_path}/3: skipped, it was never finished']
  assert (tmp_path / '3').is_dir()  # a reader removes nothing
  save_steps(tmp_path, [4])
  assert not (tmp_path / '3').exists()


@pytest.mark.parametrize('keep', [1, 2])
def test_keeps_the_latest(tmp_path, keep):
  with checkpoints.Checkpoints(tmp_path, keep=keep) as saver:
    for n in range(5):
      saver.save(n, {'x': jnp.ones(2)}, {})
    saver.wait()
    assert saver.steps() == [0, 1, 2, 3, 4][-keep:]
  with pytest.raises(ValueError, match='keep=0'):
    checkpoints.Checkpoints(tmp_path, keep=0)


def test_saving_a_step_again_does_nothing(tmp_path):
  with checkpoints.Checkpoints(tmp_path) as saver:
    assert saver.save(1, state(1), {})
    assert not saver.save(1, state(1), {})


def test_donated_and_mutated_buffers_do_not_reach_the_disk(tmp_path):
  step = jax.jit(lambda x: x * 2 + 1, donate_argnums=0)
  value, counter = jnp.arange(2.0**16), np.zeros(4)
  with checkpoints.Checkpoints(tmp_path, keep=9) as saver:
    with jax.transfer_guard('disallow'):
      for n in range(4):
        saver.save(n, {'x': {'v': value, 'c': counter}}, {})
        value = step(value)
        counter += 1
    saver.wait()
    for n in range(4):
      item = saver.restore(n, {'x': None}).items['x']
      assert item['c'].tolist() == [n] * 4
      assert item['v'][1] == 2.0 ** (n + 1) - 1  # x -> 2x + 1, n times from 1


@pytest.mark.parametrize('spec', [('a',), (None, 'a'), ()])
def test_another_sharding_restores_the_same_bits(tmp_path, spec):
  auto = (jax.sharding.AxisType.Auto,)
  mesh = jax.make_mesh((8,), ('a',), axis_types=auto)
  rows = jax.sharding.NamedSharding(mesh, jax.P('a'))
  array = np.random.default_rng(0).normal(size=(8, 16)).astype(np.float32)
  sharding = jax.sharding.NamedSharding(mesh, jax.P(*spec))
  with checkpoints.Checkpoints(tmp_path) as saver:
    saver.save(1, {'params': {'w': jax.device_put(array, rows)}}, {})
    saver.wait()
    target = jax.ShapeDtypeStruct((8, 16), jnp.float32, sharding=sharding)
    restored = saver.restore(1, {'params': {'w': target}}).items['params']['w']
    saver.verify_latest({'params': {'w': target}})
  assert restored.sharding == sharding
  np.testing.assert_array_equal(restored, array)


def test_params_alone_without_knowing_their_tree(tmp_path):
  save_steps(tmp_path, [7])
  with checkpoints.Checkpoints(tmp_path) as reader:
    alone = reader.restore_latest({'params': None}, partial=True)
    with pytest.raises(types.InputError, match='opt_state: not expected'):
      reader.restore_latest({'params': None})
  assert list(alone.items) == ['params']
  fingerprint = tree.fingerprint(alone.items['params'])
  assert fingerprint == tree.fingerprint(state(7)['params'])


@pytest.mark.parametrize(
  'change, line',
  [
    ({'b': np.zeros(12, np.float32)}, 'b: dtype bfloat16, expected float32'),
    ({'b': jnp.zeros(6, jnp.bfloat16)}, 'b: shape (12,), expected (6,)'),
    ({'c': jnp.zeros(1)}, 'c: missing'),
    ({'b': None}, 'b: not expected'),
  ],
)
def test_another_state_is_refused_by_leaf(tmp_path, change, line):
  save_steps(tmp_path, [1, 2])
  wanted = abstract()
  wanted['params'] = wanted['params'] | change
  with checkpoints.Checkpoints(tmp_path, log=pytest.fail) as reader:
    with pytest.raises(types.InputError) as error:
      reader.restore_latest(wanted)
  assert str(error.value) == (
    f'{tmp_path}/2/params: {line}; fix: use the config that the run was '
    'started with, or a new --workdir'
  )


def test_a_bit_flip_in_any_file_is_never_restored(tmp_path):
  """Orbax alone: 104 of 120 flips restored (RELIABILITY, measured)."""

  def items(n):  # each item has a dozen files
    return {'params': state(n)['params']}

  save_steps(tmp_path, [2, 3], items)
  choose = random.Random(0)
  files = sorted(p for p in (tmp_path / '3').rglob('*') if p.is_file())
  pieces = [p for p in files if p.parent.name == 'd']
  # How many files hold the data depends on Orbax's threads: 3 to 5.
  assert len(pieces) >= 2 and len(files) >= 12
  files += pieces
  walked_back = 0
  for path in files * 2:
    data = path.read_bytes()
    flipped = bytearray(data)
    bit = choose.randrange(8 * len(data))
    flipped[bit // 8] ^= 1 << bit % 8
    path.write_bytes(flipped)
    restored, lines = restore(tmp_path, items)  # checks the bits
    walked_back += restored.step == 2
    assert len(lines) == (restored.step == 2), path
    assert all(line.startswith(f'{tmp_path}/3: skipped, ') for line in lines)
    path.write_bytes(data)
  assert walked_back >= 4


def test_a_fingerprint_that_differs_is_walked_back_by_leaf(tmp_path):
  save_steps(tmp_path, [2, 3])
  shutil.rmtree(tmp_path / '3' / 'params')
  shutil.copytree(tmp_path / '2' / 'params', tmp_path / '3' / 'params')
  restored, lines = restore(tmp_path)
  assert restored.step == 2
  assert f'{tmp_path}/3: skipped, params/a/kernel: fingerprint' in lines[0]
  with checkpoints.Checkpoints(tmp_path) as reader:
    with pytest.raises(types.InputError, match='not sound on disk, params/a'):
      reader.verify_latest()
    with pytest.raises(types.InputError, match='3: params/a.* fix: use one'):
      reader.restore(3, abstract())


def test_a_renamed_step_is_unsound_and_set_aside_when_passed(tmp_path):
  save_steps(tmp_path, [2])
  shutil.copytree(tmp_path / '2', tmp_path / '5')
  lines = []
  with checkpoints.Checkpoints(tmp_path, log=lines.append) as saver:
    assert saver.restore_latest(abstract()).step == 2
    saver.save(3, state(3), {})
    assert saver.verify_latest() == 3
    assert saver.steps() == [2, 3]
  assert lines == [
    f'{tmp_path}/5: skipped, it is step 2 under another number',
    f'{tmp_path}/5: moved to set_aside/5',
  ]
  assert (tmp_path / 'set_aside' / '5' / 'params').is_dir()


def test_a_folder_whose_name_is_like_a_number_is_passed_over(tmp_path):
  save_steps(tmp_path, [1])
  for name in ('\u00b2', '\u0663', '1.5', '-1', '9' * 40):
    (tmp_path / name).mkdir()
  assert restore(tmp_path)[0].step == 1


def test_no_sound_step_is_an_error_not_a_fresh_start(tmp_path):
  save_steps(tmp_path, [2, 3])
  for n in (2, 3):
    (tmp_path / str(n) / 'meta' / 'metadata').write_text('{}')
  with pytest.raises(types.InputError, match=r'none of the steps \[2, 3\]'):
    restore(tmp_path)


def full_disk(limit):
  """Files end at `limit` bytes: write errors as a full disk gives them."""
  hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
  resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))


def test_an_asynchronous_error_surfaces_and_the_next_save_holds(tmp_path):
  large = {'x': jnp.asarray(np.random.default_rng(0).normal(size=2**15))}
  lines = []
  with checkpoints.Checkpoints(tmp_path, log=lines.append) as saver:
    saver.save(1, large, {})
    saver.wait()
    try:
      full_disk(20_000)
      saver.save(2, large, {})
      with pytest.raises(types.InputError) as error:
        saver.verify_latest()
      saver.save(3, large, {})
      while saver._manager.is_saving_in_progress():
        time.sleep(0.01)
    finally:
      full_disk(resource.RLIM_INFINITY)
    saver.save(4, large, {})  # logs that 3 was lost, waits for 4
    assert saver.steps() == [1, 4] and saver.verify_latest() == 4
  start, end = f'{tmp_path}/2: the checkpoint was not written (', 'from step 1'
  assert str(error.value).startswith(start) and str(error.value).endswith(end)
  assert 'File too large' in str(error.value)
  assert '; fix: raise the limit on file sizes (ulimit -f)' in str(error.value)
  assert 'needs 131 kB, ' in str(error.value)  # 2^15 float32
  assert len(lines) == 1 and f'{tmp_path}/3: ' in lines[0]
  assert not (tmp_path / '2').exists()


def test_close_raises_what_was_lost(tmp_path):
  with pytest.raises(types.InputError, match='/1: the checkpoint was not'):
    with checkpoints.Checkpoints(tmp_path) as saver:
      saver.save(1, state(1), {})
      saver._manager.wait_until_finished()
      shutil.rmtree(tmp_path / '1')


def test_a_folder_that_is_a_file_is_one_line(tmp_path):
  (tmp_path / 'c').write_text('')
  with pytest.raises(types.InputError, match='/c/1: .*File exists'):
    with checkpoints.Checkpoints(tmp_path / 'c') as saver:
      saver.save(1, state(1), {})


def test_typed_keys_and_the_records_name_are_refused(tmp_path):
  with checkpoints.Checkpoints(tmp_path) as saver:
    with pytest.raises(TypeError, match='rng/key: save jax.random.key_data'):
      saver.save(1, {'rng': {'key': jax.random.key(0)}}, {})
    with pytest.raises(ValueError, match="named 'meta'"):
      saver.save(1, {'meta': {'x': jnp.ones(1)}}, {})


_CHILD = """
import sys
sys.path[:0] = [{repo!r}, {tests!r}]
import test_checkpoints as t
from dpo_jax.storage import checkpoints
with checkpoints.Checkpoints({folder!r}) as saver:
  last = saver.restore_latest(t.abstract())
  for n in range(last.step + 1 if last else 0, 10**6):
    saver.save(n, t.state(n), {{'step': n, 'pair': [1, 2]}})
    print(n, file=open({progress!r}, 'w'), flush=True)
"""


def progress_of(path):
  text = path.read_text() if path.exists() else ''
  return int(text) if text.strip() else -1


def test_killed_at_any_moment_at_most_one_save_is_lost(tmp_path):
  tests, children = str(_REPO / 'tests' / 'storage'), []
  for name in 'ab':  # both continue from a step that is there
    folder, progress = tmp_path / name, tmp_path / f'{name}.txt'
    save_steps(folder, [0])
    child = _CHILD.format(
      repo=str(_REPO), tests=tests, folder=str(folder), progress=str(progress)
    )
    process = subprocess.Popen([sys.executable, '-c', child])
    children.append((process, folder, progress))
  choose, images = random.Random(0), []
  for process, folder, progress in children:
    deadline = time.monotonic() + 180
    while progress_of(progress) < 2 and time.monotonic() < deadline:
      time.sleep(0.02)
    for i in range(4):  # stop, copy, go on: what a kill now would leave
      process.send_signal(signal.SIGSTOP)
      image = shutil.copytree(folder, tmp_path / f'{folder.name}{i}')
      images.append((image, progress_of(progress)))
      process.send_signal(signal.SIGCONT)
      time.sleep(choose.random() * 0.2)
    process.kill()
    process.wait()
    images.append((folder, progress_of(progress)))
  for path, started in images:
    restored, lines = restore(path)  # checks the bits
    assert restored.step >= max(started, 2) - 1
    assert all('never finished' in line for line in lines)
  for _, folder, _ in children:  # and on, over what the kill left
    step = restore(folder)[0].step + 1
    save_steps(folder, [step])
    assert restore(folder)[0].step == step


def test_a_save_is_overdue_by_the_clock(tmp_path, monkeypatch):
  clock = [0.0]
  monkeypatch.setattr(checkpoints.time, 'monotonic', lambda: clock[0])
  with checkpoints.Checkpoints(tmp_path / 'c') as saver:
    for now, overdue in ((29.0, False), (31.0, True)):
      clock[0] = now
      assert saver.is_overdue(0.5) == overdue
      assert not saver.is_overdue(0.0)  # by updates only
    saver.save(1, state(1), {})
    assert not saver.is_overdue(0.5)
    clock[0] = 62.0
    assert saver.is_overdue(0.5)
