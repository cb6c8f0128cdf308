"""The command `python -m dpo_jax.exact`: losses against a known optimum.

    python -m dpo_jax.exact --out=DIR              a study in half a minute
    python -m dpo_jax.exact --out=DIR --losses=sigmoid,ipo --betas=0.1,1
    python -m dpo_jax.exact --out=DIR --case=deterministic --measures=best

Comes in: flags. Goes out: exact.md, exact.csv, exact.json and figures/ in DIR,
the Markdown on stdout. Exit code 0; 2 for bad input, with one line on stderr.
Reads no run and no data.
"""

import argparse
import math
import os
import sys
from collections.abc import Callable, Iterable, Sequence

from dpo_jax import errors
from dpo_jax.storage import files
from dpo_jax.types import InputError


class _Parser(argparse.ArgumentParser):
  """Refuses bad flags in one line; the usage is under --help."""

  def error(self, message: str):
    raise errors.refuse(
      'command line', message, 'see python -m dpo_jax.exact --help'
    )


def main(arguments: Sequence[str] | None = None) -> int:
  """Runs the command; returns its exit code."""
  # A terminal without ± shows escapes, not a traceback.
  sys.stdout.reconfigure(errors='backslashreplace')
  # Tables of a few logits need no accelerator, and it may be in use.
  os.environ.setdefault('JAX_PLATFORMS', 'cpu')
  try:
    settings, options = parse(arguments)
    return _run(settings, options.out, options.measures)
  except InputError as error:
    print(error, file=sys.stderr)
    return 2


def parse(arguments: Sequence[str] | None):
  """The study's Settings and the other flags; InputError for any mistake."""
  from dpo_jax.exact import cases, choices, study  # imports jax: seconds

  parser = _Parser(
    prog='python -m dpo_jax.exact',
    allow_abbrev=False,
    description='Distances of losses to optima that are known. The first '
    'value of --betas, --sizes, --noises, --samplings and --steps is the base '
    'at which the others are varied.',
  )
  add = parser.add_argument
  add('--out', metavar='DIR', required=True, help='folder for the files')
  add('--case', default='bradley_terry', help=', '.join(cases.CASES))
  add(
    '--losses',
    default='default',
    help='names with commas between, each with settings if any, e.g. '
    'robust:label_smoothing=0.1; default, or all',
  )
  add('--betas', default='1,0.1,0.3,3,10', help='of pi* and of the losses')
  add('--sizes', default='inf,100,1000,10000', help='comparisons; inf = exact')
  add('--noises', default='0,0.1,0.2,0.4', help='chances of a flipped label')
  add(
    '--samplings',
    default=','.join(cases.SAMPLINGS),
    help='distributions that pairs are drawn from',
  )
  add('--seeds', default='10', help='number of seeds')
  add('--steps', default='1000', help='numbers of updates')
  add(
    '--measures',
    default='tv',
    help=f'in the tables and figures: {", ".join(study.MEASURES)}',
  )
  options = parser.parse_args(arguments)
  cases.make(options.case, 0)
  options.measures = _words('--measures', options.measures, study.MEASURES)
  settings = study.Settings(
    case=options.case,
    losses=choices.read(options.losses),
    betas=_numbers('--betas', options.betas, lambda x: 0.01 <= x <= 100),
    sizes=_numbers('--sizes', options.sizes, _is_size),
    noises=_numbers('--noises', options.noises, lambda x: 0 <= x < 0.5),
    samplings=_words('--samplings', options.samplings, cases.SAMPLINGS),
    steps=_counts('--steps', options.steps),
    num_seeds=_counts('--seeds', options.seeds)[0],
  )
  return settings, options


def _run(settings, out: str, measures: Sequence[str]) -> int:
  from dpo_jax.exact import figures, report, study

  rows = study.run(settings, lambda label: print(label, file=sys.stderr))
  made = report.files(settings, rows, measures)
  made |= figures.draw(settings, rows, measures)
  for name, content in made.items():
    path = files.at(out) / name
    with files.storage_errors(path):
      path.parent.mkdir(parents=True, exist_ok=True)
      with files.atomic_file(path) as file:
        file.write(content)
  print(made['exact.md'].decode(), end='')
  print(f'wrote {", ".join(made)} to {out}', file=sys.stderr)
  return 0


def _numbers(
  flag: str, text: str, is_allowed: Callable[[float], bool]
) -> tuple[float, ...]:
  """Numbers with commas between, each once."""
  values = []
  for word in text.split(','):
    try:
      value = float(word)
    except ValueError:
      value = math.nan
    if math.isnan(value) or not is_allowed(value):
      allowed = {
        '--betas': 'a number from 0.01 to 100',
        '--sizes': 'a whole number from 1 to 1e15, or inf',
        '--noises': 'a number in [0, 0.5)',
      }[flag]
      raise errors.refuse(flag, f'{word!r} is not allowed', f'use {allowed}')
    values.append(value)
  return tuple(dict.fromkeys(values))


def _words(flag: str, text: str, known: Iterable[str]) -> tuple[str, ...]:
  """Words with commas between, each once."""
  words = [word.strip() for word in text.split(',')]
  for word in words:
    if word not in known:
      hint = errors.did_you_mean(word, known)
      raise errors.refuse(
        flag, f'{word!r} is not known', f'{hint}use {", ".join(known)}'
      )
  return tuple(dict.fromkeys(words))


def _counts(flag: str, text: str) -> tuple[int, ...]:
  """Whole numbers with commas between, each once."""
  for word in text.split(','):
    if not word.isdecimal() or not 1 <= int(word) <= 10**6:
      raise errors.refuse(
        flag,
        f'{word!r} is not allowed',
        'use a whole number from 1 to 1,000,000',
      )
  return tuple(dict.fromkeys(int(word) for word in text.split(',')))


def _is_size(size: float) -> bool:
  return (
    math.isinf(size) and size > 0 or (size.is_integer() and 1 <= size <= 1e15)
  )


if __name__ == '__main__':
  sys.exit(main())
