"""Stages of the check of a GPU: what is run, in which order, for how long.

Comes in: the flags of gpu_check.py. Goes out: commands, each of which writes
one JSON file. The order is that of worth: what comes last is cut off first.
Starts nothing and imports no jax.
"""

import shlex
from typing import Any, NamedTuple

# Kernels that an NVIDIA GPU may have, beside 'auto' and 'dense'.
KERNELS = ('cudnn', 'tokamax', 'fa4')

# Shapes with heads of 128 and random weights: 0.60 and 1.35 billion parameters.
_MODELS = {
  '0.6b': {'model': 'qwen3-0.6b'},
  '1.3b': {
    'model': 'bench-cpu',
    'layers': 24,
    'width': 2048,
    'heads': 16,
    'kv_heads': 16,
    'head_size': 128,
    'mlp': 5504,
    'vocab': 32_000,
  },
}
_SHARED = 'packed+shared'
# One shape of rows: another would have to be compiled. The reference's weights
# are rounded for every matmul anyway.
_KEYS = {
  'data.max_shapes': 1,
  'precision.reference': 'bfloat16',
  'train.microbatches': 2,
}
_REAL = {
  'variants': _SHARED,
  'dtype': 'bfloat16',
  'batch_size': 256,
  'max_length': 1024,
  'row_length': 2048,
  'steps': 4,
  'rounds': 2,
  'isolated': 'false',
}
# The same commands on a CPU: a small model, few steps.
_TINY_MODEL = {
  'model': 'bench-cpu',
  'layers': 2,
  'width': 64,
  'heads': 2,
  'kv_heads': 1,
  'head_size': 128,
  'mlp': 128,
  'vocab': 512,
}
_TINY = {'batch_size': 4, 'max_length': 128, 'row_length': 256}
_TINY |= {'steps': 2, 'rounds': 1}
# TRL holds whole logits of padded rows: fewer pairs per step, on both sides.
# Each process has the device for itself.
_AGAINST = {
  'against': 'trl',
  'trl_variants': 'as_shipped',
  'batch_size': 16,
  'rounds': 1,
  'isolated': 'true',
  'interleaved': 'false',
  'keys': {'train.microbatches': 1},
}


class Stage(NamedTuple):
  """One command of the check."""

  name: str  # of its JSON file
  title: str  # what it measures, for the page
  kind: str  # how the page shows it: 'machine', 'equal', 'step' or 'profile'
  seconds: int  # it is stopped after as many
  words: tuple[str, ...]  # after `python`; {json} and {trl_python} are filled


def make(*, tiny: bool = False, data: str = '') -> list[Stage]:
  """Returns the stages in order.

  Args:
    tiny: a rehearsal on a CPU.
    data: JSONL(.gz) of pairs; '' draws lengths as in HH harmless.
  """
  more = {'data': data} if data else {}

  def step(name, title, seconds, model, keys=None, **flags):
    # A rehearsal stays small whatever the stage asks for.
    given = _flags(model, tiny) | more | flags | (_TINY if tiny else {})
    given |= _overrides(keys or {})
    words = ('scripts/benchmark.py', *_words(given))
    return Stage(name, title, 'step', seconds, (*words, '--json={json}'))

  def inner(name, title, kind, seconds, module, *words):
    words = ('-m', f'dpo_jax.bench.{module}', '--json={json}', *words)
    words += ('--tiny',) if tiny else ()
    return Stage(name, title, kind, seconds, words)

  profiled = _words(_flags('1.3b', tiny) | more | _overrides({}))
  against = _AGAINST | {'trl_python': '{trl_python}'}
  # Its best options keep logits of 16 pairs beyond the memory of an H100.
  against_best = against | {'trl_variants': 'best_shipped', 'batch_size': 8}
  # Without a loop over layers nothing is copied into stacks of residuals.
  unrolled = {'model.scan_layers': 'false'}
  stages = [
    inner('machine', 'The machine', 'machine', 20, 'gpu_machine'),
    step('1.3b', '1.3B', 65, '1.3b'),
    step('1.3b-trl', '1.3B against TRL', 95, '1.3b', **against),
    step('1.3b-unrolled', '1.3B, no loop', 62, '1.3b', keys=unrolled),
    inner('profile', '1.3B', 'profile', 28, 'gpu_profile', *profiled),
    inner('equal', 'Equality', 'equal', 90, 'gpu_equal'),
    step('1.3b-trl-best', '1.3B against TRL', 110, '1.3b', **against_best),
    step('1.3b-dense', '1.3B, dense', 90, '1.3b', attention='dense'),
  ]
  for kernel in KERNELS:
    title = f'1.3B, {kernel}'
    stages.append(step(f'1.3b-{kernel}', title, 40, '1.3b', attention=kernel))
  cached, lora = f'{_SHARED}+cached', f'{_SHARED}+lora'
  remat = {'model.remat': 'full'}
  own = {'precision.reference': 'float32'}  # an adapter's is its base
  stages += [
    step('1.3b-cached', '1.3B, cached', 40, '1.3b', variants=cached),
    step('1.3b-head-kept', '1.3B, logits kept', 40, '1.3b', head_chunk=0),
    step('0.6b', '0.6B', 75, '0.6b'),
    step('1.3b-lora', '1.3B, LoRA', 40, '1.3b', keys=own, variants=lora),
    step('1.3b-remat', '1.3B, remat', 40, '1.3b', keys=remat),
    step('1.3b-head-16k', '1.3B, head', 40, '1.3b', head_chunk=16_384),
    step('0.6b-dense', '0.6B, dense', 35, '0.6b', attention='dense'),
  ]
  for kernel in KERNELS:
    title = f'0.6B, {kernel}'
    stages.append(step(f'0.6b-{kernel}', title, 35, '0.6b', attention=kernel))
  return stages


def command(
  stage: Stage,
  python: str,
  json: str,
  *,
  trl_python: str = '',
  peak_tflops: float = 0.0,
) -> list[str]:
  """Returns the command line of a stage.

  Args:
    stage: whose words have places for the next arguments.
    python: interpreter.
    json: file that the stage writes.
    trl_python: interpreter that has TRL; '' is `python`.
    peak_tflops: of the device; 0 = unknown.
  """
  # Not str.format: a path may have braces.
  filled = [
    word.replace('{json}', json).replace('{trl_python}', trl_python or python)
    for word in stage.words
  ]
  if stage.kind == 'step' and peak_tflops:
    filled.append(f'--peak_tflops={peak_tflops}')
  return [python, *filled]


def listing(stages: list[Stage]) -> str:
  """Returns the stages with their budgets and commands, one per line."""
  return '\n'.join(
    f'{stage.name} ({stage.seconds} s): python {shlex.join(stage.words)}'
    for stage in stages
  )


def _flags(model: str, tiny: bool) -> dict[str, Any]:
  return _REAL | (_TINY_MODEL | _TINY if tiny else _MODELS[model])


def _overrides(keys: dict[str, Any]) -> dict[str, str]:
  pairs = (f'{name}={value}' for name, value in (_KEYS | keys).items())
  return {'overrides': ','.join(pairs)}


def _words(flags: dict[str, Any]) -> tuple[str, ...]:
  return tuple(f'--{name}={value}' for name, value in flags.items())
