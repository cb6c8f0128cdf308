"""Benchmark of the DPO step: layouts, TRL and an older commit in one run.

Comes in: a model's shape, pairs, and the ways of computing the step that are
measured. Goes out: figures, as Markdown and as JSON. Every way computes the
same updates of the same pairs from the same weights, each in a process of its
own, and their loss curves are compared. Rounds take turns, so that a noisy
machine is noisy for all, and ratios are taken within a round. Writes to a
scratch folder, and the JSON file that is asked for.
"""

import contextlib
import json
import os
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any, NamedTuple

from dpo_jax import errors
from dpo_jax.bench import crew, figures, report, workload
from dpo_jax.storage import files

# Variants of variants.py that are measured if none are named. LoRA's joins
# them if TRL's does.
_DEFAULT = (
  'padded+full',
  'padded+chunked',
  'packed',
  'packed+shared',
  'packed+shared+cached',
)


class Options(NamedTuple):
  """Flags of scripts/benchmark.py, one per field."""

  model: str = 'bench-cpu'  # a preset, or a folder of weights
  layers: int = 0  # this and the next six replace a preset's own; 0 = keep
  width: int = 0
  heads: int = 0
  kv_heads: int = 0
  head_size: int = 0
  mlp: int = 0
  vocab: int = 0
  data: str = ''  # JSONL(.gz) of pairs; '' = drawn, lengths as in HH harmless
  tokenizer: str = ''  # '' = the folder's, else a BPE trained on the data
  variants: tuple[str, ...] = _DEFAULT
  passes: bool = False  # forward alone, and with its gradient, too
  batch_size: int = 8  # prompts per step
  max_length: int = 512  # tokens of prompt + completion
  row_length: int = 0  # 0 = max_length
  dtype: str = 'float32'  # of matmuls
  attention: str = ''  # config.model.attention; '' = the config's
  head_chunk: str = ''  # config.precision.head_chunk; '' = the config's
  overrides: tuple[str, ...] = ()  # KEY=VALUE of the config; --config.KEY=VALUE
  lora: int = 16  # rank in the variants that train an adapter
  learning_rate: float = 1e-5
  steps: int = 8  # per round
  rounds: int = 3
  interleaved: bool = True  # rounds take turns; False = one process at a time
  isolated: bool = True  # a process per variant of ours; False = this process
  cores: int = 0  # CPU cores that all may use; 0 = as they are
  against: str = ''  # 'trl'
  trl_python: str = ''  # its interpreter, of another environment
  trl_variants: tuple[str, ...] = crew.TRL_VARIANTS
  same_weights: bool = True  # False: TRL draws its own, no curves are compared
  baseline: str = ''  # a commit of this repository to compare with
  tolerance: float = 0.0  # of losses; 0 = 1e-5 in float32, 0.02 in bfloat16
  grow: tuple[str, ...] = ()  # of layers, width, length, pairs
  peak_tflops: float = 0.0  # of the device, for MFU; 0 = measured by a matmul
  json: str = ''  # file for all figures


class Failed(RuntimeError):
  """Something was not measured, or losses differ; the text is the report."""


def run(options: Options) -> str:
  """Runs the benchmark; returns the report as Markdown.

  Raises:
    InputError: a flag names nothing, or the data cannot be read.
    Failed: a process ended, or the loss curves differ.
  """
  _check(options)
  with _cores(options.cores):
    if options.grow:
      result = _grow(options)
      text = report.grown(result)
    else:
      result = measure(options)
      text = report.markdown(result)
  if options.json:
    path = pathlib.Path(options.json)
    with files.storage_errors(path):
      path.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(path, result)
  if result['failed'] or not result['curves']['agree']:
    raise Failed(text)
  return text


def measure(options: Options) -> dict[str, Any]:
  """Measures everything that the flags ask for; returns the figures."""
  config = workload.shape(options)
  records = workload.records(options, config)
  with tempfile.TemporaryDirectory() as scratch:
    folder = pathlib.Path(scratch)
    workload.save(folder / 'pairs.npz', records)
    (folder / 'options.json').write_text(json.dumps(options._asdict()))
    measured = crew.measure(options, folder)
  return figures.collect(options, config, records, measured)


# How a growth changes the shape flags, from the values of the model.
_GROWN = {
  'layers': ('layers',),
  'width': ('width', 'mlp', 'heads', 'kv_heads'),
  'length': ('max_length',),
  'pairs': ('batch_size',),
}
_FACTORS = (1, 2, 4)


def _grow(options: Options) -> dict[str, Any]:
  """Figures of models and batches that are 1, 2 and 4 times as large."""
  config = workload.shape(options)
  sizes = options._asdict() | {
    'layers': config.num_layers,
    'width': config.width,
    'mlp': config.mlp_width,
    'heads': config.num_heads,
    'kv_heads': config.num_kv_heads,
  }
  points, failed, agree = {}, {}, True
  for name in options.grow:
    for factor in _FACTORS:
      own = {flag: factor * sizes[flag] for flag in _GROWN[name]}
      result = measure(options._replace(**own))
      points[f'{name}x{factor}'] = result | {'grown': own}
      failed |= {
        f'{name}x{factor}: {k}': v for k, v in result['failed'].items()
      }
      agree &= result['curves']['agree']
  return {'points': points, 'failed': failed, 'curves': {'agree': agree}}


def _check(options: Options) -> None:
  known = {
    'variants': crew.our_variants(),
    'trl_variants': crew.TRL_VARIANTS,
    'against': ('', 'trl'),
    'grow': tuple(_GROWN),
    'dtype': ('float32', 'bfloat16'),
  }
  for flag, allowed in known.items():
    given = getattr(options, flag)
    for name in (given,) if isinstance(given, str) else given:
      if name not in allowed:
        hint = errors.did_you_mean(name, allowed)
        names = ', '.join(filter(None, allowed))
        raise errors.refuse(f'--{flag}', f'no {name!r}', f'{hint}use {names}')
  if options.against and not options.trl_python:
    raise errors.refuse(
      '--trl_python',
      'is missing, --against=trl needs it',
      'name the python of an environment with trl and peft',
    )
  for word in options.overrides:
    if '=' not in word:
      raise errors.refuse(
        f'--config.{word}', 'has no value', f'--config.{word}=VALUE'
      )
  crew.check(options)


@contextlib.contextmanager
def _cores(count: int) -> Iterator[None]:
  """Confines this process, and those it starts, to so many cores."""
  if not count:
    yield
    return
  before = os.sched_getaffinity(0)
  if count > len(before):
    raise errors.refuse(
      '--cores', f'{count} of {len(before)} that there are', 'fewer'
    )
  os.sched_setaffinity(0, sorted(before)[:count])
  try:
    yield
  finally:
    os.sched_setaffinity(0, before)
