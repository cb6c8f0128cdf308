"""run directory -> at most three lines on what stands out in a run.

Comes in: metrics.jsonl, the values per comparison and the lengths of samples.
Goes out: what was seen, whether it is usual, which knob to try; or one line
that says what is fine. Writes nothing; imports no jax, so that results can show
the same lines. symptoms.py has the checks.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from dpo_jax.run import symptoms
from dpo_jax.storage import example_file, files, metrics_file

MOST = 3  # lines
PREFIX = 'diagnosis: '


def lines(
  first: Mapping[str, float],
  last: Mapping[str, float],
  history: Mapping[str, Mapping[int, Mapping[str, float]]],
  *,
  config: Mapping[str, Any] | None = None,
  arrays: Mapping[str, np.ndarray] | None = None,
) -> list[str]:
  """Returns what stands out, the gravest first; one line if nothing does.

  Args:
    first: metrics of the evaluation before training; {} if there is none.
    last: metrics of the evaluation to speak about.
    history: split -> step -> metrics: 'train', 'eval', and 'samples' with the
      mean `num_tokens` of samples. Splits may be missing.
    config: nested, as in config.json: knobs are named with their values.
    arrays: of per_example/*.npz, [P] each: length, label noise and ties need
      them.
  """
  knobs = files.flatten(config or {}, keep=['loss.terms'])
  case = symptoms.Case(first, last, history, knobs, arrays or {})
  seen = [(name, text) for name, of in symptoms.SYMPTOMS if (text := of(case))]
  if not seen:
    return [PREFIX + symptoms.healthy(case)]
  told = [PREFIX + text for _, text in seen[:MOST]]
  if seen[MOST:]:
    told[-1] += f' Also: {", ".join(name for name, _ in seen[MOST:])}.'
  return told


def of_run(
  path: files.AnyPath,
  last: Mapping[str, float] | None = None,
  arrays: Mapping[str, np.ndarray] | None = None,
  *,
  is_own: bool = True,
) -> list[str]:
  """The lines of a run directory.

  Args:
    path: of the run.
    last: metrics of an evaluation; None takes the run's last one.
    arrays: its values per comparison; None takes those of the last one.
    is_own: whether it is on the run's own held-out data. If not, it is not
      compared with the run's first evaluation.

  Raises:
    InputError: a file of the run is damaged.
  """
  history = _history(path)
  steps = history.get('eval', {})
  if last is None:
    step = max(steps, default=0)
    last, arrays = steps.get(step, {}), _arrays(path, step)
  # A fork has no evaluation of step 0.
  first = steps[min(steps)] if len(steps) > 1 else {}
  return lines(
    first if is_own else {},
    last,
    history if is_own else {**history, 'eval': {}},
    config=files.read_json_or_none(path / 'config.json', fix='copy it again'),
    arrays=arrays,
  )


def _history(path: files.AnyPath) -> dict[str, dict[int, dict[str, float]]]:
  """What the run measured, by split and step; a later line counts."""
  history: dict[str, dict[int, dict[str, float]]] = {}
  if (path / 'metrics.jsonl').exists():
    for entry in metrics_file.read(path / 'metrics.jsonl'):
      steps = history.setdefault(entry['split'], {})
      steps[entry['step']] = metrics_file.values(entry)
  sampled = {}
  for file in sorted((path / 'samples').glob('eval_*_*.jsonl')):
    counts = [row['num_tokens'] for row in _rows(file) if 'num_tokens' in row]
    if counts:
      step = int(file.name.split('_')[1])
      sampled[step] = {'num_tokens': float(np.mean(counts))}
  return history | {'samples': sampled}


def _rows(path: files.AnyPath) -> list[dict[str, Any]]:
  with files.storage_errors(path):
    text = path.read_bytes()
  return [
    files.parse_json(line, path, fix='remove the file')
    for line in text.splitlines()
    if line.strip()
  ]


def _arrays(path: files.AnyPath, step: int) -> dict[str, np.ndarray]:
  """The values per comparison of an evaluation; {} if it saved none."""
  file = path / 'per_example' / f'eval_{step}.npz'
  if not file.exists():
    return {}
  with files.storage_errors(file), files.load_arrays(file) as saved:
    return {
      name: saved[name]
      for name in saved.files
      if not example_file.is_whole(name)
    }
