"""Files of a run directory -> numbers: metrics, values per comparison, samples.

Comes in: the bytes of metrics.jsonl and per_example/*.npz, or the folder that
holds evaluate/ and frontier/. Goes out: records, arrays and the sha256 of what
was read. Decides nothing about tables and writes nothing.
"""

import io
import zipfile
from collections.abc import Collection
from typing import Any, NamedTuple

import numpy as np

from dpo_jax import errors
from dpo_jax.results import measures
from dpo_jax.storage import example_file, files, metrics_file


class Examples(NamedTuple):
  """What one evaluation saved of each comparison, or of each completion."""

  step: int
  uid: np.ndarray  # [P], the record of each
  prompt: np.ndarray  # [P], its prompt; `uid` itself if none were saved
  arrays: dict[str, np.ndarray]  # field -> [P], float64 or bool


class Evaluation(NamedTuple):
  """What --mode=evaluate wrote beside a run's own evaluations."""

  step: int  # of the policy
  data: str  # config.data.eval
  metrics: dict[str, float]
  examples: Examples | None
  digests: dict[str, str]  # as Run.digests


def digests(data: dict[str, bytes]) -> dict[str, str]:
  """Returns {file name: sha256 hex}."""
  return {name: files.bytes_digest([read]) for name, read in data.items()}


def read_evaluations(path: files.AnyPath) -> dict[str, Evaluation]:
  """evaluate/*.json of a run, with the values in per_example/."""
  evaluations = {}
  for file in sorted((path / 'evaluate').glob('*.json')):
    name, fix = file.stem, 'evaluate the run again, or remove the file'
    values = f'per_example/{name}.npz'
    data = {f'evaluate/{file.name}': read(file)}
    facts = files.parse_json(data[f'evaluate/{file.name}'], file, fix=fix)
    step, metrics = facts.get('step'), facts.get('metrics')
    if type(step) is not int or not isinstance(metrics, dict):
      raise errors.refuse(file, 'has no step or no metrics', fix)
    examples = None
    if (path / values).exists():
      data[values] = read(path / values)
      examples = parse_examples(data[values], step, path / values)
    evaluations[name] = Evaluation(
      step,
      str(facts.get('data', '')),
      metrics_file.values(metrics),
      examples,
      digests(data),
    )
  return evaluations


def read_frontier(
  path: files.AnyPath, known: Collection[str] | None = None
) -> tuple[dict[int, dict[str, Any]], dict[str, str]]:
  """frontier/step_*.json of a run: rewards of its samples, by step.

  Args:
    path: of the run.
    known: names of the files that count, such as 'frontier/step_25.json';
      None = all.

  Returns:
    {step: the file's object}, ascending, with metrics {name: {'mean', 'se'}};
    and {file name: sha256 hex}.

  Raises:
    InputError: a file that is not of the form.
  """
  steps, data, fix = {}, {}, 'sample the step again, or remove the file'
  for file in (path / 'frontier').glob('step_*.json'):
    name = f'frontier/{file.name}'
    if known is not None and name not in known:
      continue
    data[name] = read(file)
    facts = files.parse_json(data[name], file, fix=fix)
    try:
      step, metrics = facts['step'], facts['metrics']
      _ = [(m['mean'] + 0.0, m['se'] + 0.0) for m in metrics.values()]
      steps[step + 0] = facts
    except (KeyError, TypeError, AttributeError) as error:
      problem = f'has no step, or metrics without mean and se ({error})'
      raise errors.refuse(file, problem, fix) from error
  return dict(sorted(steps.items())), digests(dict(sorted(data.items())))


def parse_metrics(data: bytes, where: Any) -> tuple[dict, int]:
  """metrics.jsonl -> (split -> step -> metrics, number of torn last lines).

  If a step of a split is there twice, the later line counts. Nulls are left
  out.

  Args:
    data: the file's bytes.
    where: its path, for messages.

  Raises:
    InputError: as `metrics_file.parse`.
  """
  entries, torn = metrics_file.parse(data, where, numbers=measures.MEASURES)
  records = {}
  for entry in entries:
    steps = records.setdefault(entry['split'], {})
    steps[entry['step']] = metrics_file.values(entry)
  for split, steps in records.items():
    records[split] = dict(sorted(steps.items()))
  return records, torn


def parse_examples(data: bytes, step: int, where: Any) -> Examples | None:
  """per_example/eval_<step>.npz -> Examples; None if it holds no examples.

  Raises:
    InputError: not an npz of numbers, or its arrays differ in length.
  """
  arrays = read_arrays(data, where)
  if 'uid' not in arrays:
    return None
  uid = arrays.pop('uid')
  if any(array.shape[:1] != uid.shape for array in arrays.values()):
    shapes = ', '.join(str(array.shape) for array in arrays.values())
    raise errors.refuse(
      where,
      f'{uid.size} uids but scores of shapes {shapes}',
      'evaluate the run again',
    )
  prompt = arrays.pop('prompt_id', uid)
  return Examples(step, uid, prompt, _as_numbers(arrays)) if uid.size else None


def read_arrays(data: bytes, where: Any) -> dict[str, np.ndarray]:
  """The arrays of an npz file, {} if it holds no values of its uids.

  Raises:
    InputError: not an npz, or one of objects.
  """
  try:
    with np.load(io.BytesIO(data), allow_pickle=False) as archive:
      if set(archive.files) <= {'uid'}:
        return {}
      names = [n for n in archive.files if not example_file.is_whole(n)]
      return {name: archive[name] for name in names}
  except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
    problem = str(error).splitlines()[0]
    raise errors.refuse(
      where, f'not a readable npz ({problem})', 'evaluate the run again'
    ) from error


def _as_numbers(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """The arrays of one number per example; float64, so that means are exact."""
  return {
    name: array if array.dtype == bool else array.astype(np.float64)
    for name, array in arrays.items()
    if array.ndim == 1 and array.dtype.kind in 'biuf'
  }


def read(path: files.AnyPath) -> bytes:
  """The bytes of a file; InputError if it cannot be read."""
  files.refuse_stream(path)
  try:
    return path.read_bytes()
  except OSError as error:
    raise errors.refuse(
      path, f'cannot be read ({error.strerror})', 'mend its permissions'
    ) from error


def number(text: str) -> float | int:
  """A JSON number; 1.0 becomes 1, so that both say the same config."""
  if len(text) < 20 and text.lstrip('-').isdigit():
    return int(text)
  value = float(text)
  return int(value) if value.is_integer() and abs(value) < 1e15 else value
