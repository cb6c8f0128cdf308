"""Measures the DPO step: python scripts/benchmark.py --data=FILE.jsonl.gz.

Flags are the fields of dpo_jax.bench.step.Options, such as --preset, --data,
--variants=packed,packed+shared, --precision=bfloat16, --rounds=5. With
--sampling, --sweep or --encoding as the first argument it measures sampling, a
sweep against separate commands, or the encoding of data; flags are the fields
of Options in that module.
"""

import argparse
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from dpo_jax.bench import encoding, sampling, step, sweep  # noqa: E402
from dpo_jax.types import InputError  # noqa: E402


def main() -> int:
  """Reads flags and prints the table; exit code 2 for bad input."""
  benchmark, words = step, sys.argv[1:]
  others = {'--sampling': sampling, '--sweep': sweep, '--encoding': encoding}
  if words and words[0] in others:
    benchmark, words = others[words[0]], words[1:]
  parser = argparse.ArgumentParser(description=__doc__)
  for name, default in benchmark.Options()._asdict().items():
    kind = _names if isinstance(default, tuple) else type(default)
    parser.add_argument(f'--{name}', type=kind, default=default)
  try:
    print(benchmark.run(benchmark.Options(**vars(parser.parse_args(words)))))
  except InputError as error:
    print(error, file=sys.stderr)
    return 2
  return 0


def _names(text: str) -> tuple[str, ...]:
  return tuple(text.split(','))


if __name__ == '__main__':
  sys.exit(main())
