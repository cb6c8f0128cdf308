"""The real packages wandb (offline) and trackio: what they keep of a run.

Needs an environment with both and no dependency of this package:
  python -m venv E && E/bin/pip install wandb trackio
  PYTHONPATH=. E/bin/python tests/storage/real_trackers.py RUN
Sends the lines of RUN/metrics.jsonl through storage.trackers, reads back what
the packages wrote to disk, and compares names, numbers and group.
"""

import json
import math
import os
import pathlib
import sqlite3
import struct
import subprocess
import sys
import tempfile

from dpo_jax.storage import metrics_file, trackers

GROUP = 'a sweep'


def main(run: pathlib.Path) -> int:
  """Prints a line per package; 1 if one kept other numbers."""
  lines = metrics_file.read(run / 'metrics.jsonl')
  wanted = {
    (line['step'], f'{line["split"]}/{name}'): value
    for line in lines
    for name, value in metrics_file.values(line).items()
  }
  failed = 0
  with tempfile.TemporaryDirectory() as scratch:
    folder = pathlib.Path(scratch) / run.name
    folder.mkdir()
    os.environ |= {'WANDB_MODE': 'offline', 'WANDB_SILENT': 'true'}
    os.environ |= {'TRACKIO_DIR': scratch, 'HF_HUB_OFFLINE': '1'}
    for kind, read in (('wandb', read_wandb), ('trackio', read_trackio)):
      # wandb writes its file when the process ends.
      command = [sys.executable, __file__, str(run), kind, str(folder)]
      done = subprocess.run(command, capture_output=True, text=True)
      said = [line for line in done.stdout.splitlines() if 'could not' in line]
      kept, group = read(folder)
      wrong = [key for key in wanted if not same(kept.get(key), wanted[key])]
      print(
        f'{kind}: {len(kept)} of {len(wanted)} numbers, {len(wrong)} differ, '
        f'group {group!r}, said {said}'
      )
      failed |= bool(wrong or said or group != GROUP)
  return failed


def send(run, kind, folder):
  """Sends all lines of a run, as the run does."""
  tracker = trackers.Tracker(
    kind,
    folder,
    project='check',
    group=GROUP,
    config={'loss': {'beta': 0.1}},
  )
  for line in metrics_file.read(run / 'metrics.jsonl'):
    tracker.write(line['step'], line['split'], metrics_file.values(line))
  tracker.close()


def read_wandb(folder):
  """({(step, name): value}, group) of the file that an offline run leaves."""
  from wandb.proto import wandb_internal_pb2

  kept, group = {}, ''
  for path in folder.rglob('*.wandb'):
    for data in records(path.read_bytes()):
      record = wandb_internal_pb2.Record()
      record.ParseFromString(data)
      group = record.run.run_group or group
      items = {
        item.key or '/'.join(item.nested_key): json.loads(item.value_json)
        for item in record.history.item
      }
      for name, value in items.items():
        if not name.startswith('_'):
          kept[items['_step'], name] = value
  return kept, group


def records(data):
  """Yields the records of a LevelDB log: pieces in blocks of 32 KiB."""
  place, whole = 7, b''  # after the header of the file
  while place + 7 <= len(data):
    left = 32768 - place % 32768
    if left < 7:  # no header fits: the rest of the block is empty
      place += left
      continue
    _, size, kind = struct.unpack_from('<IHB', data, place)
    whole += data[place + 7 : place + 7 + size]
    place += 7 + size
    if kind in (1, 4):  # a whole record, or its last piece
      yield whole
      whole = b''


def read_trackio(folder):
  """({(step, name): value}, group) of trackio's database."""
  kept, group = {}, ''
  for path in folder.parent.rglob('check*.db'):
    with sqlite3.connect(path) as base:
      for step, text in base.execute('select step, metrics from metrics'):
        for name, value in json.loads(text).items():
          kept[step, name] = value
      for (text,) in base.execute('select config from configs'):
        group = json.loads(text).get('_Group', '')
  return kept, group


def same(one, other):
  """Equal numbers; NaN and infinities may be texts."""
  if one is None:
    return False
  return float(one) == float(other) or (
    math.isnan(float(one)) and math.isnan(float(other))
  )


if __name__ == '__main__':
  if len(sys.argv) > 2:
    send(pathlib.Path(sys.argv[1]), sys.argv[2], pathlib.Path(sys.argv[3]))
  else:
    sys.exit(main(pathlib.Path(sys.argv[1])))
