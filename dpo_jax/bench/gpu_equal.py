"""Forms that must be equal, on the device: attention kernels, output heads.

Comes in: a file. Goes out: one row per form, case and dtype with the largest
errors of value and gradient against float32, beside those of the plain form in
the same dtype. The file is rewritten after each row. Trains nothing.

  python -m dpo_jax.bench.gpu_equal --json=FILE [--tiny]
"""

import functools
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dpo_jax import scoring
from dpo_jax.data.batches import length_table, pipeline
from dpo_jax.models import decoder
from dpo_jax.models.decoder_config import DecoderConfig
from dpo_jax.models.kernels import proof, registry
from dpo_jax.storage import files
from dpo_jax.types import Comparison, EncodedRecord

# Case -> query heads, key heads, window.
_CASES = {'own keys': (16, 16, None), 'shared keys, window': (16, 4, 200)}
_TINY_CASES = {'shared keys, window': (2, 1, 50)}
_HEADS = {'logits kept': 0, 'chunks of 1,024': 1024, 'chunks of 4,096': 4096}
_DTYPES = ('bfloat16', 'float32')
_BRANCHES = 2  # completions of a prompt


def rows(tiny: bool) -> Iterator[dict[str, Any]]:
  """Yields one row per comparison."""
  # Kernels first: the heads' programs take a GPU's compiler longer.
  for dtype in _DTYPES:
    for name in registry.KERNELS:
      for case, heads in (_TINY_CASES if tiny else _CASES).items():
        row = {'form': name, 'case': case, 'dtype': dtype}
        yield row | _kernel(name, heads, dtype, tiny)
  for dtype in _DTYPES:
    for name, form in _HEADS.items():
      yield _head(name, form, dtype, tiny)


def _kernel(name: str, case, dtype: str, tiny: bool) -> dict[str, Any]:
  """Errors of an attention kernel, or a line on why it cannot be here."""
  num_heads, num_kv_heads, window = case
  backend = jax.default_backend()
  config = DecoderConfig(
    vocab_size=2,
    width=num_heads * 128,
    mlp_width=2,
    num_layers=1,
    num_heads=num_heads,
    num_kv_heads=num_kv_heads,
    head_size=128,
  )
  reason, _ = registry.problem(name, config, dtype, backend)
  if reason:
    return {'line': f'not possible: {reason}'}
  # Kernels for TPU are interpreted on a CPU.
  choice = registry.Choice(
    name, _BRANCHES, prompts=2, interpret=backend == 'cpu'
  )
  heads = proof.Heads(num_heads, num_kv_heads, 128, 128**-0.5, window, None)
  length = 256 if tiny else 1024
  try:
    errors = proof.compare(
      choice, heads, proof.make_rows(length, _BRANCHES), dtype
    )
  except Exception as error:  # of a compiler, of any kind
    line = (str(error).splitlines() or [''])[0]
    return {'line': f'{type(error).__name__}: {line}'[:200]}
  return errors._asdict() | {'right': errors.are_small}


def _head(name: str, chunk: int, dtype: str, tiny: bool) -> dict[str, Any]:
  """Errors of a form of the output head; the plain form has full logits."""
  plain_wide = _scores('float32', None, tiny)
  parts = []
  for got in (_scores(dtype, chunk, tiny), _scores(dtype, None, tiny)):
    for a, b in zip(got, plain_wide, strict=True):
      worst = [proof.error(x, y) for x, y in zip(a, b, strict=True)]
      # Python's max would drop a NaN.
      parts.append(float(np.max(worst)))
  errors = proof.Errors(*parts)
  row = {'form': 'head', 'case': name, 'dtype': dtype}
  return row | errors._asdict() | {'right': errors.are_small}


@functools.cache
def _scores(dtype: str, chunk: int | None, tiny: bool):
  """Log-probabilities of completions, and leaves of their gradient."""
  vocab, width = (512, 128) if tiny else (32_000, 512)
  config = DecoderConfig(
    vocab_size=vocab,
    width=width,
    mlp_width=2 * width,
    num_layers=2,
    num_heads=width // 128,
    num_kv_heads=width // 128,
    head_size=128,
  )
  rng = np.random.default_rng(0)

  def text(length):
    return rng.integers(1, vocab, length).astype(np.int32)

  records = [
    EncodedRecord(text(60), (text(90), text(30 + i)), (Comparison(0, 1),))
    for i in range(4 if tiny else 32)
  ]
  plan = pipeline.make_plan(
    length_table.make_table(records),
    seed=0,
    batch_size=len(records),
    row_length=256 if tiny else 2048,
    shuffle=False,
  )
  batch_rows = jax.tree.map(lambda x: x[0], plan.batch(0, records).rows)
  model = decoder.make_model(config, compute_dtype=jnp.dtype(dtype))
  params = jax.jit(model.init)(jax.random.key(0))
  options = {'full_logits': True} if chunk is None else {'chunk': chunk}
  score = scoring.make_score(model, **options)

  def values(params):
    logps = score(params, batch_rows, 2 * len(records)).logps
    return logps.sum(), logps

  # TF32 would hide what is compared.
  precision = 'highest' if dtype == 'float32' else None
  with jax.default_matmul_precision(precision):
    run = jax.jit(jax.grad(values, has_aux=True), **proof.quick_compile())
    gradient, logps = jax.tree.map(np.asarray, run(params))
  return [logps], jax.tree.leaves(gradient)


def main(words: list[str]) -> int:
  """Writes the file that --json names; exit code 1 if a form is wrong."""
  flags = dict(word.removeprefix('--').partition('=')[::2] for word in words)
  result: dict[str, Any] = {'rows': [], 'failed': {}}
  for row in rows('tiny' in flags):
    result['rows'].append(row)
    if not row.get('right', True):
      name = ', '.join(row[key] for key in ('form', 'case', 'dtype'))
      result['failed'][name] = 'wrong'
    files.write_json(pathlib.Path(flags['json']), result)
  return int(bool(result['failed']))


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
