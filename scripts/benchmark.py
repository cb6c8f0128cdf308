"""Measures the DPO step: python scripts/benchmark.py --data=FILE.jsonl.gz.

Flags are the fields of dpo_jax.benchmark.Options, e.g. --preset, --data,
--variants=packed,packed+shared, --precision=bfloat16, --rounds=5. With
--sampling first, it measures sampling, by the fields of
dpo_jax.benchmark_sampling.Options.
"""

import argparse
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from dpo_jax.bench import sampling as benchmark_sampling
from dpo_jax.bench import step as benchmark  # noqa: E402
from dpo_jax.types import InputError  # noqa: E402


def main() -> int:
  """Reads flags, prints the table; 2 and one line for bad input."""
  parser = argparse.ArgumentParser(description=__doc__)
  if sys.argv[1:2] == ['--sampling']:
    return _sampling(parser, sys.argv[2:])
  for name, default in benchmark.Options()._asdict().items():
    kind = str if name == 'variants' else type(default)
    parser.add_argument(f'--{name}', type=kind, default=default)
  values = vars(parser.parse_args())
  if isinstance(values['variants'], str):
    values['variants'] = tuple(values['variants'].split(','))
  unknown = set(values['variants']) - set(benchmark.VARIANTS)
  if unknown:
    known = ', '.join(benchmark.VARIANTS)
    problem = f'--variants: no {sorted(unknown)[0]!r}; fix: use {known}'
    print(problem, file=sys.stderr)
    return 2
  try:
    print(benchmark.run(benchmark.Options(**values)))
  except InputError as error:
    print(error, file=sys.stderr)
    return 2
  return 0


def _sampling(parser, argv) -> int:
  for name, default in benchmark_sampling.Options()._asdict().items():
    parser.add_argument(f'--{name}', type=type(default), default=default)
  options = benchmark_sampling.Options(**vars(parser.parse_args(argv)))
  try:
    print(benchmark_sampling.run(options))
  except InputError as error:
    print(error, file=sys.stderr)
    return 2
  return 0


if __name__ == '__main__':
  sys.exit(main())
