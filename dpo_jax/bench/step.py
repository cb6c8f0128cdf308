"""Benchmark of the DPO step: several layouts in one run on one machine.

Comes in: a model's shape, data and the variants to measure. Goes out: a table
of pairs per second, tokens per second, pairs per CPU-second, packing
efficiency, compile seconds, XLA's temporary memory, MFU, and ratios to the
first variant. Every variant computes the same loss on the same pairs. Rounds
take turns, so that a noisy machine is noisy for all; the median round counts.
Reads no run directory and writes no file.
"""

import functools
import gzip
import os
import platform
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers

from dpo_jax import errors, losses, optim, scoring, train_step, types
from dpo_jax.data.batches import length_table, pipeline
from dpo_jax.models import adapter_spec, adapters, decoder, flops, presets
from dpo_jax.storage import files
from dpo_jax.train_step import init_state
from dpo_jax.types import Comparison, EncodedRecord

# name -> (layout, full logits, cached reference)
VARIANTS = {
  'padded+full': ('padded', True, False),
  'padded+chunked': ('padded', False, False),
  'packed': ('packed', False, False),
  'packed+shared': ('shared', False, False),
  'packed+shared+cached': ('shared', False, True),
}

_COLUMNS = ('prompt', 'chosen', 'rejected')  # of the file that --data names


class Options(NamedTuple):
  """Flags of scripts/benchmark.py, one per field."""

  preset: str = 'bench-cpu'  # shape of the model
  data: str = ''  # JSONL(.gz) of pairs; '' = drawn, lengths as in HH harmless
  variants: tuple[str, ...] = tuple(VARIANTS)
  batch_size: int = 8  # prompts per step
  max_length: int = 512  # tokens of prompt + completion
  row_length: int = 0  # 0 = max_length
  precision: str = 'float32'
  remat: str = 'none'
  lora: int = 0  # rank of an adapter on all linear maps; 0 = train all weights
  chunk: int = 1024  # positions whose logits exist at one time
  block: int = 128  # of attention: tokens per side
  steps: int = 8  # per round
  rounds: int = 3
  peak_tflops: float = 0.0  # of the device, for MFU; 0 = measured by a matmul


class Variant(NamedTuple):
  """A compiled way of computing the step."""

  step: Any  # step(state, reference, batch, hyper)
  reference: Any
  batches: list[Any]
  compile_seconds: float
  temporary_mb: float
  packing_efficiency: float
  tokens: int  # per round, as separate sequences without padding


def run(options: Options) -> str:
  """Runs the benchmark.

  Returns:
    The table and a line on the machine, as Markdown.

  Raises:
    InputError: no such variant, or `data` cannot be read.
  """
  _check(options)
  config = presets.get(options.preset)
  records = _records(options, config.vocab_size)
  variants, params = _compile(options, config, records)
  times = {name: [] for name in variants}
  for _ in range(options.rounds):
    for name, variant in variants.items():
      times[name].append(_time(variant, params, options))
  peak = options.peak_tflops * 1e12 or _measured_peak(options.precision)
  return _report(options, config, records, variants, times, peak)


def _check(options: Options) -> None:
  for name in options.variants:
    if name not in VARIANTS:
      hint = errors.did_you_mean(name, VARIANTS)
      raise errors.refuse(
        '--variants', f'no {name!r}', f'{hint}use {", ".join(VARIANTS)}'
      )


def _compile(options, config, records):
  """Returns the variants by name, compiled, and the trained parameters."""
  model = decoder.make_model(
    config,
    compute_dtype=jnp.dtype(options.precision),
    remat=options.remat,
    attention_block=options.block,
  )
  weights = jax.jit(model.init)(jax.random.key(0))
  params, spec = weights, None
  if options.lora:
    targets = adapter_spec.linears(config)
    spec = adapter_spec.AdapterSpec(options.lora, 2.0 * options.lora, targets)
    init = functools.partial(adapters.init, config, spec)
    params = jax.jit(init)(jax.random.key(1))
  variants = {
    name: _make(options, model, weights, params, spec, records, VARIANTS[name])
    for name in options.variants
  }
  return variants, params


def _make(options, model, weights, params, spec, records, variant) -> Variant:
  layout, full, cached = variant
  plan = pipeline.make_plan(
    length_table.make_table(records),
    seed=0,
    batch_size=options.batch_size,
    row_length=options.row_length or options.max_length,
    layout=layout,
  )
  score = scoring.make_score(model, chunk=options.chunk, full_logits=full)
  batches = [plan.batch(t, records) for t in range(options.steps)]
  if cached:
    batches = [_with_scores(score, weights, batch) for batch in batches]
  optimizer = optim.make_optimizer('adamw')
  step = train_step.make_train_step(
    score,
    losses.make_objective(('sigmoid',)),
    optimizer,
    optim.make_schedule('constant', num_steps=1),
  )
  jitted = jax.jit(step, donate_argnums=0)
  if spec is not None:
    reference = types.Frozen(weights, jnp.float32(spec.scale))
  else:
    # Cached scores come with the batch: there is no reference model then.
    own = None if cached else jax.tree.map(jnp.copy, weights)
    reference = types.Frozen(weights=own)
  shapes = {batch.rows.tokens.shape: batch for batch in batches}
  began = time.perf_counter()
  compiled = {
    shape: jitted.lower(
      init_state(params, optimizer, 0), reference, batch, _hyper()
    ).compile()
    for shape, batch in shapes.items()
  }
  seconds = time.perf_counter() - began

  def run_step(state, batch):
    return compiled[batch.rows.tokens.shape](state, reference, batch, _hyper())

  summary = plan.summary(options.steps)
  return Variant(
    step=run_step,
    reference=reference,
    batches=jax.device_put(batches),
    compile_seconds=seconds,
    temporary_mb=max(
      c.memory_analysis().temp_size_in_bytes for c in compiled.values()
    )
    / 1e6,
    packing_efficiency=summary['packing_efficiency'],
    tokens=summary['num_separate_tokens'],
  )


def _with_scores(score, params, batch):
  """The batch with the reference's scores in it, as a cache would give."""
  rows = jax.tree.map(lambda x: x[0], batch.rows)
  scores = jax.jit(score, static_argnums=2)(params, rows, len(batch.labels))
  return batch._replace(reference=scores)


def _hyper():
  hyper = losses.default_hyper({'sigmoid': 1.0})
  return hyper | {'learning_rate': jnp.float32(1e-6)}


def _time(variant: Variant, params, options: Options) -> tuple[float, float]:
  """Returns (seconds, CPU-seconds) of one round of steps, each on new data."""
  optimizer = optim.make_optimizer('adamw')
  state = init_state(jax.tree.map(jnp.copy, params), optimizer, 0)
  # The first call moves arrays and is not measured.
  state, _ = variant.step(state, variant.batches[0])
  jax.block_until_ready(state)
  wall, cpu = time.perf_counter(), time.process_time()
  for batch in variant.batches:
    state, metrics = variant.step(state, batch)
  jax.block_until_ready((state, metrics))
  return time.perf_counter() - wall, time.process_time() - cpu


def _measured_peak(precision: str) -> float:
  """Returns the operations per second of a large matmul on one device."""
  size = 2048 if jax.default_backend() == 'cpu' else 8192
  x = jnp.ones((size, size), jnp.dtype(precision))
  matmul = jax.jit(lambda a, b: a @ b)
  jax.block_until_ready(matmul(x, x))
  best = np.inf
  for _ in range(5):
    began = time.perf_counter()
    jax.block_until_ready(matmul(x, x))
    best = min(best, time.perf_counter() - began)
  return 2 * size**3 / best


def _useful_flops(options, config, records, name, variant) -> float:
  """Returns the operations that one round's steps need, without waste.

  A forward pass counts 1 and a backward pass 2, or 1 if the weights have no
  gradient: 3 or 2 for the policy, and 1 for a reference without cache.
  """
  plan = pipeline.make_plan(
    length_table.make_table(records),
    seed=0,
    batch_size=options.batch_size,
    row_length=options.row_length or options.max_length,
  )
  total = 0.0
  for t in range(options.steps):
    for i in plan.records(t):
      lengths = [len(c) for c in records[i].completions]
      work = flops.shared_work(len(records[i].prompt), lengths)
      total += flops.forward_flops(config, work)
  return total * ((2 if options.lora else 3) + (not VARIANTS[name][2]))


def _report(options, config, records, variants, times, peak) -> str:
  pairs = options.batch_size * options.steps
  first = next(iter(variants))
  lines = [
    '| variant | pairs/s | tokens/s | pairs/CPU-s | ratio | ratio (wall) '
    '| packing | compile s | XLA temp MB | MFU |',
    '|---|---|---|---|---|---|---|---|---|---|',
  ]
  for name, variant in variants.items():
    wall, cpu = np.median(times[name], axis=0)
    ratios = np.median(np.array(times[first]) / np.array(times[name]), axis=0)
    needed = _useful_flops(options, config, records, name, variant)
    lines.append(
      f'| {name} | {pairs / wall:.2f} | {variant.tokens / wall:.0f} '
      f'| {pairs / cpu:.2f} | {ratios[1]:.2f} | {ratios[0]:.2f} '
      f'| {variant.packing_efficiency:.2f} | {variant.compile_seconds:.0f} '
      f'| {variant.temporary_mb:.0f} | {needed / wall / peak:.1%} |'
    )
  trained = f'LoRA of rank {options.lora}' if options.lora else 'all weights'
  lengths = [len(r.prompt) for r in records]
  answers = [len(c) for r in records for c in r.completions]
  lines.append(
    f'\n{jax.devices()[0].device_kind} ({platform.processor()}, '
    f'{os.cpu_count()} cores), jax {jax.__version__}, {options.precision}; '
    f'peak {peak / 1e12:.2f} TFLOP/s; {options.preset}, {trained}, '
    f'{options.batch_size} prompts per step, {len(records)} prompts of '
    f'{np.mean(lengths):.0f} and answers of {np.mean(answers):.0f} tokens, '
    f'at most {options.max_length}; median of {options.rounds} rounds of '
    f'{options.steps} steps. ratio: pairs per CPU-second over {first}.'
  )
  return '\n'.join(lines)


def _records(options: Options, vocab_size: int) -> list[EncodedRecord]:
  """Returns the pairs as tokens, by a BPE that is trained on the file."""
  if not options.data:
    return _drawn_records(vocab_size, options.max_length)
  rows = _read_pairs(options.data)
  tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
  tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(False)
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=vocab_size - 1, show_progress=False
  )
  texts = (row['prompt'] + row['chosen'] for row in rows)
  tokenizer.train_from_iterator(texts, trainer)
  columns = [
    [e.ids for e in tokenizer.encode_batch([row[key] for row in rows])]
    for key in _COLUMNS
  ]
  return [
    # Token 0 ends every answer, so the tokenizer's ids move up by one.
    _fit(*(np.array(ids, np.int32) + 1 for ids in row), options.max_length)
    for row in zip(*columns)
    if all(row)
  ]


def _read_pairs(path: str) -> list[dict[str, str]]:
  fix = f'name a JSONL(.gz) file with {", ".join(_COLUMNS)}'
  opener = gzip.open if path.endswith('.gz') else open
  try:
    with opener(path, 'rb') as file:
      lines = file.readlines()
  except (OSError, EOFError) as error:
    why = getattr(error, 'strerror', None) or error
    raise errors.refuse(
      '--data', f'{path!r} cannot be read ({why})', fix
    ) from error
  rows = []
  for number, line in enumerate(lines, 1):
    row = files.parse_json(line, f'{path}:{number}', fix=fix)
    for column in _COLUMNS:
      if not isinstance(row.get(column), str):
        raise errors.refuse(f'{path}:{number}', f'no text {column!r}', fix)
    rows.append(row)
  return rows


def _drawn_records(vocab_size: int, max_length: int) -> list[EncodedRecord]:
  """Returns random tokens; lengths as in HH harmless under a BPE of 8,192."""
  rng = np.random.default_rng(0)
  # Logarithms of the lengths of prompt, chosen and rejected are normal.
  lengths = np.exp(rng.normal((4.5, 3.4, 3.4), (0.75, 0.95, 0.95), (512, 3)))
  return [
    _fit(
      *(
        rng.integers(1, vocab_size, max(1, int(n))).astype(np.int32)
        for n in row
      ),
      max_length,
    )
    for row in lengths
  ]


def _fit(prompt, chosen, rejected, max_length: int) -> EncodedRecord:
  """Cuts a pair: answers end with token 0, the prompt loses its start."""
  most = max_length // 2
  answers = [np.append(a[: most - 1], 0) for a in (chosen, rejected)]
  room = max_length - max(map(len, answers))
  return EncodedRecord(prompt[-room:], tuple(answers), (Comparison(0, 1),))
