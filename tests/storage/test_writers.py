"""writers.py: metrics.jsonl over kills and restarts, and what people see."""

import io
import json
import math
import resource

import jax.numpy as jnp
import numpy as np
import pytest
import tensorboardX.proto.event_pb2 as event_pb2

from dpo_jax import types
from dpo_jax.storage import metrics_file, writers


def lines_of(workdir):
  return (workdir / 'metrics.jsonl').read_text().splitlines()


def write(workdir, entries, **kwargs):
  """Writes {'loss': step} at each (step, split); returns what was shown."""
  stream = kwargs.pop('stream', io.StringIO())
  with writers.MetricWriter(
    workdir, total_steps=10, stream=stream, **kwargs
  ) as writer:
    for step, split in entries:
      writer.write(step, split, {'loss': float(step)})
  return stream.getvalue()


def test_each_kind_of_scalar_becomes_json(tmp_path):
  with writers.MetricWriter(tmp_path, total_steps=1) as writer:
    writer.write(
      np.int64(1).item(),
      'train',
      {'a': jnp.float32(0.5), 'n': np.int64(3), 'b': jnp.bfloat16(2), 'c': 1},
    )
    assert lines_of(tmp_path) == [  # on disk before the writer is closed
      '{"step": 1, "split": "train", "a": 0.5, "n": 3, "b": 2.0, "c": 1}'
    ]


def test_nan_and_infinity_are_null_and_named(tmp_path):
  with writers.MetricWriter(tmp_path, total_steps=1) as writer:
    writer.write(1, 'eval', {'loss': math.nan, 'x': 1.0, 'g': -math.inf})
  refuse = {'parse_constant': pytest.fail}
  assert json.loads(lines_of(tmp_path)[0], **refuse) == {
    'step': 1,
    'split': 'eval',
    'loss': None,
    'x': 1.0,
    'g': None,
    'nonfinite': 'loss=nan, g=-inf',
  }


def test_a_restart_leaves_the_lines_of_an_unbroken_run(tmp_path):
  run = [(0, 'eval'), (1, 'train'), (2, 'train'), (2, 'eval'), (3, 'train')]
  run += [(4, 'train'), (4, 'eval')]
  (tmp_path / 'whole').mkdir()
  write(tmp_path / 'whole', run)
  for cut in range(len(run)):  # killed after any line; 2 was the last save
    workdir = tmp_path / f'{cut}'
    workdir.mkdir()
    write(workdir, run[: cut + 1])
    with open(workdir / 'metrics.jsonl', 'a') as file:
      file.write('{"step": 4, "spl')  # the line that the kill tore
    saved = 2 if cut >= 3 else 0
    again = [entry for entry in run if entry[0] >= saved]
    write(workdir, again, start_step=saved)
    assert lines_of(workdir) == lines_of(tmp_path / 'whole'), cut


def test_a_broken_line_before_the_last_is_named(tmp_path):
  write(tmp_path, [(1, 'train')])
  path = tmp_path / 'metrics.jsonl'
  for bad in ('{"step": 2', '[1]', '{"step": "2", "split": "train"}', '{}'):
    path.write_text(f'{lines_of(tmp_path)[0]}\n{bad}\n')
    with pytest.raises(types.InputError, match='metrics.jsonl:2: not a line'):
      writers.MetricWriter(tmp_path, total_steps=1, start_step=5)
  path.write_text('')
  assert metrics_file.read(path) == []
  with pytest.raises(types.InputError, match='none: No such file'):
    metrics_file.read(tmp_path / 'none')


def test_plain_lines_at_the_start_the_end_and_evaluations(tmp_path):
  entries = [(0, 'eval')] + [(n, 'train') for n in range(1, 11)]
  shown = write(tmp_path, entries, comparisons_per_step=4).splitlines()
  assert shown[0] == 'eval step 0/10  loss 0.0000'
  assert shown[1] == 'step 1/10  loss 1.0000'
  assert shown[2].startswith('step 10/10  loss 10.0000  ')
  assert shown[2].endswith(' comparisons/s  0:00:00 left')
  assert len(shown) == 3  # nothing between: less than ten seconds


def test_a_terminal_gets_a_bar_and_lines_above_it(tmp_path):
  class Terminal(io.StringIO):
    def isatty(self):
      return True

  stream = Terminal()
  with pytest.raises(RuntimeError, match='stop'):
    with writers.MetricWriter(
      tmp_path, total_steps=10, stream=stream
    ) as writer:
      writer.write(4, 'train', {'loss': 0.5, 'rewards/accuracies': 0.75})
      writer.log('[bold] is text')
      raise RuntimeError('stop')
  shown = stream.getvalue()
  assert '4/10' in shown and 'loss 0.5000  accuracy 0.750' in shown
  assert '[bold] is text' in shown
  assert shown.rstrip().endswith('\x1b[?25h')  # the cursor is back


def test_tensorboard_has_the_same_numbers(tmp_path):
  write(tmp_path, [(1, 'train'), (2, 'eval')])
  write(tmp_path, [(2, 'eval'), (3, 'train')], start_step=2)
  events = []
  for path in sorted((tmp_path / 'tensorboard').iterdir()):
    data = path.read_bytes()
    while data:  # TFRecord: length, its checksum, event, its checksum
      size = int.from_bytes(data[:8], 'little')
      event = event_pb2.Event.FromString(data[12 : 12 + size])
      data = data[16 + size :]
      events += [
        (v.tag, event.step, v.simple_value) for v in event.summary.value
      ]
  assert events == [
    ('train/loss', 1, 1.0),
    ('eval/loss', 2, 2.0),
    ('train/loss', 3, 3.0),
  ]


def test_a_full_disk_is_one_line_and_no_hang(tmp_path):
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  with pytest.raises(types.InputError, match='File too large; fix: raise the'):
    try:
      resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
      write(tmp_path, [(n, 'train') for n in range(10_000)])
    finally:
      resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_workdir_that_is_gone_is_one_line(tmp_path):
  with pytest.raises(types.InputError, match='metrics.jsonl: No such file'):
    writers.MetricWriter(tmp_path / 'none', total_steps=1)
