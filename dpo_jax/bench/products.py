"""Table of the matmuls of a training step, by the dtypes of their operands.

Comes in: a model's shape and the compute dtype. Goes out: a Markdown table,
read from the program that jax gives to the compiler. Compiles and runs nothing.
The body of a loop is counted once, whatever its number of steps.
"""

import collections
import dataclasses
import functools
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dpo_jax import losses, optim, scoring, train_step, types
from dpo_jax.data.batches import length_table, pipeline
from dpo_jax.models import (
  adapter_spec,
  adapters,
  decoder,
  presets,
  quantized,
)
from dpo_jax.types import Comparison, EncodedRecord

# Kinds of steps: (experts, rank of an adapter, dtype of the frozen base).
KINDS = {
  'dense': (0, 0, 'float32'),
  'LoRA': (0, 4, 'float32'),
  'LoRA on int8': (0, 4, 'int8'),
  'experts': (4, 0, 'float32'),
}
# Parts of the model by the path of a matmul: the first pattern that fits.
_PARTS = {
  'head': r'\bn[dv],(vd|nd)->',
  'router': r'RLD,DE->RLE',
  'linear maps': r'(query|key|value|out|up|gate|down)/',
  'attention': r'attention/',
  'experts': r'while/body/(.*\(jvp\(\)\)/|jvp\(\)/)?dot_general',
}
_DOT = re.compile(
  r'stablehlo\.dot_general .*: \(tensor<(\S+)>, tensor<(\S+)>\) -> '
  r'tensor<(\S+)> loc\((#loc\d+)\)'
)
_LOCATION = re.compile(r'^(#loc\d+) = loc\("(.*?)"', re.MULTILINE)


class Options(NamedTuple):
  """Flags of scripts/benchmark.py --products, one per field."""

  preset: str = 'tiny'  # shape of the model
  kinds: tuple[str, ...] = tuple(KINDS)
  precision: str = 'bfloat16'
  chunk: int = 64  # positions of the head; 0 = logits are kept
  batch_size: int = 8  # prompts per step
  max_length: int = 128  # tokens of prompt + completion


class Matmul(NamedTuple):
  """One matmul of a lowered program."""

  path: str  # of scopes in the source, ends with '/dot_general'
  left: str  # shape and dtype, for example '64x320xbf16'
  right: str
  out: str


def run(options: Options) -> str:
  """Returns the table: matmuls by kind of step, part and operands."""
  lines = ['| step | part | operands | matmuls |', '|---|---|---|---|']
  for kind in options.kinds:
    counts = collections.Counter(
      (part_of(matmul), f'{_dtype(matmul.left)} x {_dtype(matmul.right)}')
      for matmul in matmuls(lower(options, kind))
    )
    lines += [
      f'| {kind} | {part} | {operands} | {count} |'
      for (part, operands), count in sorted(counts.items())
    ]
  return '\n'.join(lines)


def matmuls(lowered: Any) -> list[Matmul]:
  """Returns the matmuls of a lowered program, in order."""
  text = lowered.as_text(debug_info=True)
  paths = dict(_LOCATION.findall(text))
  found = [
    Matmul(paths.get(place, ''), left, right, out)
    for left, right, out, place in _DOT.findall(text)
  ]
  # A change of the format must not look like a program without matmuls.
  assert len(found) == len(re.findall(r'\bstablehlo\.dot_general\b', text))
  return found


def part_of(matmul: Matmul) -> str:
  """Returns the part of the model that a matmul belongs to."""
  if matmul.right.count('x') < 2:
    return 'vectors'
  for part, pattern in _PARTS.items():
    if re.search(pattern, matmul.path):
      return part
  return 'other'


def lower(options: Options, kind: str) -> Any:
  """Returns the lowered training step of a kind of KINDS; nothing is run."""
  num_experts, rank, base = KINDS[kind]
  config = presets.get(options.preset)
  if num_experts:
    config = dataclasses.replace(
      config, num_experts=num_experts, experts_per_token=2
    )
  model = decoder.make_model(
    config,
    compute_dtype=jnp.dtype(options.precision),
    attention_block=min(128, options.max_length // 4),
  )
  weights = jax.eval_shape(model.init, jax.random.key(0))
  params, reference = weights, types.Frozen(weights=weights)
  if rank:
    targets = adapter_spec.linears(config)
    spec = adapter_spec.AdapterSpec(rank, 2.0 * rank, targets)
    init = functools.partial(adapters.init, config, spec)
    params = jax.eval_shape(init, jax.random.key(1))
    store = functools.partial(quantized.quantize, kind=base)
    frozen = jax.eval_shape(store, weights)
    reference = types.Frozen(frozen, jnp.float32(spec.scale))
  return _lower(options, model, params, reference, bool(num_experts))


def _lower(options, model, params, reference, has_router):
  objective = losses.make_objective(('sigmoid',))
  optimizer = optim.make_optimizer('adamw')
  step = train_step.make_train_step(
    scoring.make_score(model, chunk=options.chunk),
    objective,
    optimizer,
    optim.make_schedule('constant', num_steps=1),
  )
  state = jax.eval_shape(
    lambda params: train_step.init_state(params, optimizer, 0), params
  )
  hyper = losses.default_hyper({'sigmoid': 1.0})
  hyper['learning_rate'] = jnp.float32(1e-6)
  if has_router:
    hyper['router_aux_coef'] = jnp.float32(0.01)
  batch = _batch(options, model.config.vocab_size)
  return jax.jit(step).lower(state, reference, batch, hyper)


def _batch(options, vocab_size):
  """A batch of drawn pairs; only its shape counts."""
  rng = np.random.default_rng(0)
  size = options.max_length // 8

  def ids():
    return rng.integers(1, vocab_size, size).astype(np.int32)

  records = [
    EncodedRecord(ids(), (ids(), ids()), (Comparison(0, 1),))
    for _ in range(options.batch_size)
  ]
  plan = pipeline.make_plan(
    length_table.make_table(records),
    seed=0,
    batch_size=options.batch_size,
    row_length=options.max_length,
  )
  return plan.batch(0, records)


def _dtype(operand: str) -> str:
  return operand.rpartition('x')[2]
