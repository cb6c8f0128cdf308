"""Benchmark of sampling: with a cache, and by reading all text per token.

Comes in: a model's shape and sizes. Goes out: a table of tokens per second of
models/generate.py, and of a forward pass over the whole text per token, on the
same rows, in one run. Reading again is measured at its best: it reads no
further than the text, rounded up to 32 tokens, and projects the last position
only; one token per such length is timed and counts for all. Writes no file.
"""

import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dpo_jax import types
from dpo_jax.models import decoder, generate, output_head, presets

_STEP = 32  # tokens by which the texts that are read again grow


class Options(NamedTuple):
  """Flags of scripts/benchmark.py --sampling, one per field."""

  preset: str = 'bench-cpu'  # shape of the model
  batch_size: int = 64  # rows
  prompt_length: int = 64  # tokens
  new_tokens: int = 64
  precision: str = 'float32'
  rounds: int = 3


def run(options: Options) -> str:
  """Runs the benchmark; returns the table as Markdown."""
  config = presets.get(options.preset)
  model = decoder.make_model(config, compute_dtype=jnp.dtype(options.precision))
  params = jax.jit(model.init)(jax.random.key(0))
  rng = np.random.default_rng(0)
  shape = options.batch_size, options.prompt_length
  prompts = rng.integers(1, config.vocab_size, shape).astype(np.int32)
  cached = _cached(options, model, params, prompts)
  again = _again(options, model, params, prompts)
  seconds = [(cached(), again()) for _ in range(options.rounds)]
  return _report(options, np.array(seconds))


def _cached(options, model, params, prompts):
  """Returns a function that samples once and returns its seconds."""
  make = generate.make_generate(model, max_new_tokens=options.new_tokens)
  sample = jax.jit(make)
  rows = len(prompts)
  lengths = np.full(rows, options.prompt_length, np.int32)
  seeds, key = np.arange(rows, dtype=np.uint32), jax.random.key(0)
  # Temperature 1 and no filter; no token ends a text.
  sampling = generate.Sampling(*map(jnp.float32, (1.0, 0, 1.0, 0.0)))
  never = np.int32([-1])

  def once():
    return sample(params, prompts, lengths, seeds, key, sampling, never)

  return _timed(once)


def _again(options, model, params, prompts):
  """Returns a function that gives the seconds of all tokens, uncached."""
  end = options.prompt_length + options.new_tokens
  lengths = range(options.prompt_length + _STEP, end + 1, _STEP)
  steps = [
    _timed(_reader(model, params, prompts, length)) for length in lengths
  ]
  return lambda: sum(step() for step in steps) * options.new_tokens / len(steps)


def _reader(model, params, prompts, length):
  """Returns a function that reads `length` tokens and draws the next ones."""
  rows, known = prompts.shape
  tokens = np.pad(prompts, ((0, 0), (0, length - known)), mode='wrap')
  positions = np.tile(np.arange(length, dtype=np.int32), (rows, 1))
  zeros, ones = np.zeros_like(positions), np.ones_like(positions)
  texts = types.Rows(tokens, positions, ones, zeros, zeros, zeros - 1)
  keys = jax.random.split(jax.random.key(0), rows)

  @jax.jit
  def read(params, texts, last, keys):
    hidden_RLD, _ = model.hidden(params, texts)
    logits_RV = output_head.logits(model.head(params), hidden_RLD[:, last])
    return generate.draw(keys, logits_RV)

  return lambda: read(params, texts, jnp.int32(length - 1), keys)


def _timed(function) -> Any:
  """Returns a function that calls `function` and gives its seconds."""
  # The first call compiles and is not measured.
  jax.block_until_ready(function())

  def seconds():
    began = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - began

  return seconds


def _report(options: Options, seconds) -> str:
  tokens = options.batch_size * options.new_tokens
  cached, again = np.median(seconds, axis=0)
  ratio = np.median(seconds[:, 1] / seconds[:, 0])
  return (
    '| way | tokens/s | ratio |\n|---|---|---|\n'
    f'| read again | {tokens / again:.0f} | 1.0 |\n'
    f'| cache | {tokens / cached:.0f} | {ratio:.1f} |\n\n'
    f'{jax.devices()[0].device_kind}, jax {jax.__version__}, '
    f'{options.precision}; {options.preset}, {options.batch_size} rows, '
    f'{options.new_tokens} tokens after prompts of {options.prompt_length}; '
    f'median of {options.rounds} rounds.'
  )
