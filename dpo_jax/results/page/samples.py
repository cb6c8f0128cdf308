"""samples/*.jsonl of runs -> samples that stand side by side.

Comes in: runs. Goes out: plain values: per run the samples of its newest step
and of its first one, as many as there is room for, and the prompts that they
answer. Draws no sample and judges none.
"""

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from dpo_jax.results import collect
from dpo_jax.results.page import markup
from dpo_jax.storage import files

MOST = 200  # samples of a file
_LONGEST = 2000  # characters of a text
_SETTINGS = ('temperature', 'top_k', 'top_p', 'min_p', 'sample_seed')


def as_json(
  runs: Sequence[collect.Run], names: Mapping[Any, str], room: int
) -> tuple[dict[str, Any], list[str]]:
  """The samples of all runs as plain values, and what is absent.

  Args:
    runs: of the page, in order.
    names: what the page calls a run, by its path.
    room: bytes for all of them; every file gets an equal share.
  """
  sets, prompts, absent = [], {}, []
  chosen = [(i, file) for i, run in enumerate(runs) for file in _files(run)]
  without = [names[run.path] for run in runs if not _files(run)]
  for index, file in chosen:
    rows, facts = _read(file)
    facts |= {'run': index, 'name': names[runs[index].path]}
    left, kept = room // len(chosen), []
    for row in rows[:MOST]:
      prompt = markup.visible(row['prompt'], _LONGEST)
      kept.append(_shown(row))
      number = kept[-1]['prompt']
      new = {} if number in prompts else {number: prompt}
      left -= len(markup.json_block('', [kept[-1], new]).text)
      if left < 0:
        kept.pop()
        break
      prompts |= new
    sets.append({**facts, 'rows': kept, 'of': len(rows)})
  if without and sets:
    absent.append(f'no samples of {len(without)} runs: {", ".join(without)}')
  elif without:
    absent.append('no run has samples; fix: --mode=sample --workdir=RUN')
  return {'sets': sets, 'prompts': prompts}, absent


def _files(run: collect.Run) -> list[files.AnyPath]:
  """The newest and the first file of samples of a run."""
  folder = run.path / 'samples'
  listed = sorted(folder.glob('*.jsonl'), key=lambda file: (_step(file), file))
  # The first of the newest step: others differ in their settings.
  newest = [file for file in listed if _step(file) == _step(listed[-1])][:1]
  return list(dict.fromkeys([*newest, *listed[:1]]))


def _step(file: files.AnyPath) -> int:
  match = re.search(r'step_(\d+)', file.name)
  return int(match[1]) if match else -1


def _read(file: files.AnyPath) -> tuple[list[dict[str, Any]], dict[str, Any]]:
  """The samples of a file, and what the page says of it."""
  try:
    data = file.read_bytes()
  except OSError as error:
    return [], {'file': _name(file), 'problem': f'not readable: {error}'}
  lines = [line for line in data.split(b'\n') if line.strip()]
  rows = [files.parse_object(line) for line in lines]
  good = [row for row in rows if row and _is_sample(row)]
  facts = {
    'file': _name(file),
    'sha256': files.bytes_digest([data]),
    'settings': _settings(good),
  }
  if len(good) < len(rows):
    facts['problem'] = f'{len(rows) - len(good)} lines are no samples'
  return good, facts


def _is_sample(row: Mapping[str, Any]) -> bool:
  fields = row.get('prompt'), row.get('completion'), row.get('prompt_id')
  return all(isinstance(field, str) for field in fields)


def _settings(rows: Sequence[Mapping[str, Any]]) -> str:
  first = rows[0] if rows else {}
  return markup.visible(
    ', '.join(f'{k} {first[k]}' for k in _SETTINGS if k in first), 200
  )


def _shown(row: Mapping[str, Any]) -> dict[str, Any]:
  """A sample as the page shows it; logps in nats."""
  numbers = {
    'seed': row.get('seed'),
    'tokens': row.get('num_tokens'),
    'log-probability': row.get('model_logp'),
    "reference's": row.get('reference_logp'),
  }
  facts = [
    f'{name} {value:.6g}'
    for name, value in numbers.items()
    if isinstance(value, int | float)
  ]
  reason = row.get('stop_reason')
  facts += [f'ended by {reason}'] if isinstance(reason, str) else []
  return {
    'prompt': markup.visible(row['prompt_id'], 100),
    'text': markup.visible(row['completion'], _LONGEST),
    'facts': markup.visible(', '.join(facts), 300),
  }


def _name(file: files.AnyPath) -> str:
  return markup.visible(os.path.join('samples', file.name))
