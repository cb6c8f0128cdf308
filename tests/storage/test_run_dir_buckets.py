"""run_dir.py and writers.py in a bucket: one writer, and whole lines."""

import io
import json

import numpy as np
import pytest

from dpo_jax import types
from dpo_jax.storage import (
  append,
  example_file,
  files,
  leases,
  metrics_file,
  run_dir,
  writers,
)

_CONFIG = {'seed': 0, 'train': {'num_steps': 10}}


def names(folder):
  return sorted(str(p.relative_to(folder)) for p in folder.rglob('*'))


def test_a_run_is_made_and_continued(bucket):
  run = run_dir.RunDir(bucket / 'a')
  assert not run.check(_CONFIG)
  assert not run.create_or_continue(_CONFIG)
  with pytest.raises(types.InputError, match='another process is writing this'):
    run_dir.RunDir(bucket / 'a').create_or_continue(_CONFIG)
  run.confirm()
  run.write_per_example('eval_0', {'x': [1.0, 2.0], 'whole.y': [3]})
  path = run.write_samples('s', [{'a': 1}])
  assert path == 'mem://bkt/a/samples/s.jsonl'
  assert run.write_samples('s', [{'a': 2}]).endswith('s_2.jsonl')
  run.mark_done(step=3)
  run.close()
  again = run_dir.RunDir('mem://bkt/a')
  assert again.create_or_continue(_CONFIG) and again.is_done(_CONFIG)
  again.close()
  whole = example_file.read_whole(run.path / 'per_example' / 'eval_0.npz')
  assert whole['y'] == [3]
  assert names(bucket / 'a') == [
    '.lock/000002.json',
    'DONE',
    'config.json',
    'per_example/eval_0.npz',
    'samples/s.jsonl',
    'samples/s_2.jsonl',
  ]
  with pytest.raises(types.InputError, match='holds a run of another config'):
    again.check(_CONFIG | {'seed': 1})


def test_a_refused_command_leaves_nothing(bucket):
  (bucket / 'a' / 'mine').write_bytes(b'')
  run = run_dir.RunDir(bucket / 'a')
  with pytest.raises(types.InputError, match='no'), run.as_it_was():
    run.lock()
    files.write_json(run.cache_dir / 'tokens' / 'x' / 'meta.json', {})
    raise types.InputError('no')
  assert names(bucket) == ['a/mine']


def test_a_run_that_was_taken_over_is_not_written(bucket, monkeypatch):
  run = run_dir.RunDir(bucket / 'a')
  monkeypatch.setattr(leases.Lease, '_beat_on', lambda lease: None)
  run.create_or_continue(_CONFIG)
  (bucket / 'a' / '.lock' / '000002.json').write_bytes(b'{"owner": "other"}')
  run.confirm()  # the last sign of life is not old
  monkeypatch.setattr(leases, 'ALIVE_SECONDS', 0.0)
  with pytest.raises(types.InputError, match='took this run over'):
    run.confirm()
  run.close()


def write(workdir, entries, start_step=0, seals=()):
  kept = {}
  writer = writers.MetricWriter(
    workdir, total_steps=9, start_step=start_step, stream=io.StringIO()
  )
  for step, split in entries:
    writer.write(step, split, {'loss': float(step), 'x_per_second': 1.0})
    if step in seals:
      kept[step] = writer.seal()
  return writer, kept


def test_lines_of_a_sealed_step_are_in_the_bucket(bucket):
  path = bucket / 'a' / 'metrics.jsonl'
  steps = [(0, 'eval'), (1, 'train'), (2, 'train'), (3, 'train')]
  # A kill: the writer is not closed. What was sealed is there, and the chain
  # of digests that a checkpoint keeps holds.
  _, seals = write(bucket / 'a', steps, seals=(2,))
  assert [e['step'] for e in metrics_file.read(path)] == [0, 1, 2]
  assert metrics_file.check(path, seals[2], 2)
  writer, again = write(bucket / 'a', steps[3:], start_step=2, seals=(3,))
  writer.close()
  assert [e['step'] for e in metrics_file.read(path)] == [0, 1, 2, 3]
  # As an unbroken run has it.
  whole, seals = write(bucket / 'b', steps, seals=(3,))
  whole.close()
  assert seals == again
  assert path.read_bytes() == (bucket / 'b' / 'metrics.jsonl').read_bytes()
  assert len(list((bucket / 'a' / 'tensorboard').iterdir())) == 2
  lines = path.read_bytes().splitlines()
  path.write_bytes(b'\n'.join([lines[1], lines[0], *lines[2:], b'']))
  with pytest.raises(types.InputError, match='are not those that were there'):
    metrics_file.check(path, again[3], 3)


def test_lines_reach_the_bucket_between_checkpoints(bucket, monkeypatch):
  monkeypatch.setattr(append, '_PUT_SECONDS', 0.0)
  monkeypatch.setattr(append, '_SHARE', 0.0)
  writer, _ = write(bucket, [(1, 'train'), (2, 'train')])
  text = (bucket / 'metrics.jsonl').read_text()
  assert [json.loads(line)['step'] for line in text.splitlines()] == [1, 2]
  writer.write(3, 'train', {'loss': np.float32(1)})
  writer.close()


def test_a_store_that_fails_at_the_end_is_said(bucket, monkeypatch):
  writer, _ = write(bucket, [(1, 'train')])

  def fails(path, data, new=False):
    raise OSError(5, 'no more', str(path))

  monkeypatch.setattr(type(bucket), 'write_bytes', fails)
  with pytest.raises(OSError, match='no more'):
    writer.close()
