"""run directory -> table and figure: the command `python -m dpo_jax.results`.

    python -m dpo_jax.results RUNS... --out=DIR    tables and curves into DIR
    python -m dpo_jax.results --verify DIR         do they still follow?

Comes in: run directories, or folders of them. Goes out: results.md, .tex and
.csv, curves.pdf and .png, provenance.json; the Markdown on stdout. Exit code
0; 1 where --verify finds a cell that no longer follows from its runs; 2 for
bad input, with one line on stderr. Trains and evaluates nothing.
"""

import argparse
import sys
from collections.abc import Sequence

from dpo_jax.results import cells, collect, provenance
from dpo_jax.types import InputError


class _Parser(argparse.ArgumentParser):
  """Says what is wrong in one line; the usage is under --help."""

  def error(self, message: str):
    raise InputError(f'{message}; fix: see python -m dpo_jax.results --help')


def main(arguments: Sequence[str] | None = None) -> int:
  """Runs the command; returns its exit code."""
  # a terminal without ± and † shows escapes, not a traceback
  sys.stdout.reconfigure(errors='backslashreplace')
  try:
    options = _parse(arguments)
    if options.verify is not None:
      return _verify(options.verify)
    return _report(options.runs, options.out)
  except InputError as error:
    print(error, file=sys.stderr)
    return 2
  except BrokenPipeError:  # `| head` has read enough
    sys.stderr.close()
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
  parser = _Parser(
    prog='python -m dpo_jax.results',
    description='Tables and curves from run directories.',
  )
  parser.add_argument(
    'runs',
    nargs='*',
    metavar='RUNS',
    help='run directories, or folders of them',
  )
  parser.add_argument('--out', metavar='DIR', help='folder for the files')
  parser.add_argument(
    '--verify', metavar='DIR', help='check the tables in DIR against their runs'
  )
  options = parser.parse_args(arguments)
  if options.verify is not None and (options.runs or options.out):
    parser.error('--verify takes one folder and neither RUNS nor --out')
  if options.verify is None and not options.runs:
    parser.error('no runs given')
  if options.verify is None and not options.out:
    parser.error('--out is missing: the folder for the files')
  return options


def _report(paths: Sequence[str], out: str) -> int:
  from dpo_jax.results import plots  # two seconds that --verify can spare

  runs = collect.collect(paths)
  files, document = provenance.report(runs, out)
  files |= plots.curves(cells.make_table(runs))
  provenance.write(files, document, out)
  print(files['results.md'].decode(), end='')
  names = ', '.join([*files, provenance.FILE])
  print(f'{len(runs)} runs read; wrote {names} to {out}', file=sys.stderr)
  return 0


def _verify(folder: str) -> int:
  problems = provenance.verify(folder)
  for problem in problems:
    print(problem)
  if problems:
    print(f'{folder}: {len(problems)} problems; fix: make the tables again')
    return 1
  print(f'{folder}: every cell follows from its runs')
  return 0


if __name__ == '__main__':
  sys.exit(main())
