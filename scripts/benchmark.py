"""Measures the DPO step: python scripts/benchmark.py --data=FILE.jsonl.gz.

Flags are the fields of dpo_jax.bench.step.Options, such as --model, --data,
--variants=packed,packed+shared, --dtype=bfloat16, --rounds=5, --against=trl,
and any --config.KEY=VALUE. With --sampling, --sweep, --encoding or --products
as the first argument it measures sampling, a sweep against separate commands,
or the encoding of data, or counts the matmuls of a step by dtype; flags are the
fields of Options in that module.
"""

import argparse
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from dpo_jax.bench import (  # noqa: E402
  encoding,
  products,
  sampling,
  step,
  sweep,
)
from dpo_jax.types import InputError  # noqa: E402


def main() -> int:
  """Prints the report; exit code 2 for bad input, 1 if it is incomplete."""
  benchmark, words = step, sys.argv[1:]
  others = {
    '--sampling': sampling,
    '--sweep': sweep,
    '--encoding': encoding,
    '--products': products,
  }
  if words and words[0] in others:
    benchmark, words = others[words[0]], words[1:]
  parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
  for name, default in benchmark.Options()._asdict().items():
    kind = {tuple: _names, bool: _flag}.get(type(default), type(default))
    # A bare flag switches on, as --passes does.
    bare = {'nargs': '?', 'const': True} if kind is _flag else {}
    parser.add_argument(f'--{name}', type=kind, default=default, **bare)
  flags, rest = parser.parse_known_args(words)
  keys = [
    w.removeprefix('--config.') for w in rest if w.startswith('--config.')
  ]
  if len(keys) < len(rest) or keys and benchmark is not step:
    parser.error(f'unrecognized arguments: {" ".join(rest)}')
  if keys:
    flags.overrides = (*flags.overrides, *keys)
  try:
    print(benchmark.run(benchmark.Options(**vars(flags))))
  except InputError as error:
    print(error, file=sys.stderr)
    return 2
  except step.Failed as report:
    print(report)
    return 1
  return 0


def _names(text: str) -> tuple[str, ...]:
  return tuple(filter(None, text.split(',')))


def _flag(text: str) -> bool:
  return {'true': True, 'false': False}[text.lower()]


if __name__ == '__main__':
  sys.exit(main())
