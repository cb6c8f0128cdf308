"""TRL's preparation of pairs, timed; runs in an environment with trl.

dpo_jax/bench/encoding.py starts it: it imports nothing of dpo_jax. Reads the
rows, then calls DPOTrainer's own method on them, as its constructor does. The
last line of stdout is JSON: rows, wall and CPU seconds of that call.
"""

import argparse
import gzip
import json
import pathlib
import resource
import sys
import time

import datasets
import transformers
from trl import DPOConfig, DPOTrainer


def main() -> None:
  """Prepares the rows once and prints the time that it took."""
  parser = argparse.ArgumentParser(description=__doc__)
  for name in ('data', 'tokenizer', 'chat_template'):
    parser.add_argument(f'--{name}', default='')
  for name in ('max_length', 'rows', 'processes'):
    parser.add_argument(f'--{name}', type=int, default=0)
  flags = parser.parse_args()
  tokenizer = transformers.AutoTokenizer.from_pretrained(flags.tokenizer)
  if flags.chat_template:
    tokenizer.chat_template = pathlib.Path(flags.chat_template).read_text()
  datasets.disable_progress_bars()
  datasets.disable_caching()
  rows = datasets.Dataset.from_list(_rows(flags))
  # The parts of a trainer that the method reads.
  trainer = argparse.Namespace(_tokenizer=tokenizer, processing_class=tokenizer)
  args = DPOConfig(
    output_dir='unused',
    max_length=flags.max_length,
    dataset_num_proc=flags.processes if flags.processes > 1 else None,
    use_cpu=True,
    bf16=False,
  )
  wall, cpu = time.monotonic(), _cpu()
  DPOTrainer._prepare_dataset(trainer, rows, tokenizer, args, 'train')
  print(
    json.dumps(
      {
        'rows': len(rows),
        'wall': time.monotonic() - wall,
        'cpu': _cpu() - cpu,
      }
    )
  )


def _rows(flags) -> list[dict]:
  opener = gzip.open if flags.data.endswith('.gz') else open
  rows = []
  with opener(flags.data, 'rt', encoding='utf-8') as file:
    for line in file:
      row = json.loads(line)
      row = {key: row[key] for key in ('prompt', 'chosen', 'rejected')}
      if flags.chat_template:
        roles = ('user', 'assistant', 'assistant')
        row = {
          key: [{'role': role, 'content': row[key]}]
          for key, role in zip(row, roles)
        }
      rows.append(row)
      if len(rows) == flags.rows:
        break
  return rows


def _cpu() -> float:
  whose = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
  uses = [resource.getrusage(who) for who in whose]
  return sum(use.ru_utime + use.ru_stime for use in uses)


if __name__ == '__main__':
  sys.exit(main())
