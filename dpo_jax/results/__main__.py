"""run directory -> table and figure: the command `python -m dpo_jax.results`.

    python -m dpo_jax.results RUNS... --out=DIR    tables and curves into DIR
    python -m dpo_jax.results RUNS... --out=DIR --metrics=loss,kl,entropy
    python -m dpo_jax.results --verify DIR         do they still follow?
    python -m dpo_jax.results RUNS... --recompute loss=ipo,beta=.05:.5
                                                   other losses, same scores

Comes in: run directories, or folders of them. Goes out: results.md, .tex and
.csv, curves.pdf and .png, provenance.json; the Markdown on stdout. Exit code
0; 1 if --verify finds a cell that no longer follows from its runs; 2 for bad
input, with one line on stderr. Trains nothing and runs no model.
"""

import argparse
import os
import pathlib
import sys
from collections.abc import Sequence

from dpo_jax import errors
from dpo_jax.results import cells, collect, measures, provenance
from dpo_jax.storage import files
from dpo_jax.types import InputError


class _Parser(argparse.ArgumentParser):
  """Refuses bad flags in one line; the usage is under --help."""

  def error(self, message: str):
    raise errors.refuse(
      'command line', message, 'see python -m dpo_jax.results --help'
    )


def main(arguments: Sequence[str] | None = None) -> int:
  """Runs the command; returns its exit code."""
  # A terminal without ± and † shows escapes, not a traceback.
  sys.stdout.reconfigure(errors='backslashreplace')
  try:
    options = _parse(arguments)
    if options.verify is not None:
      return _verify(options.verify)
    if options.recompute is not None:
      return _recompute(options)
    return _report(options.runs, options.out, options.metrics)
  except InputError as error:
    print(error, file=sys.stderr)
    return 2
  except BrokenPipeError:
    # A reader such as `| head` has enough: no error, and no traceback when the
    # interpreter flushes at its end.
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
    '--metrics',
    metavar='NAMES',
    type=lambda text: [name.strip() for name in text.split(',')],
    help='names in metrics.jsonl, with commas between; default: '
    + ','.join(each.name for each in measures.MEASURES.values() if each.shown),
  )
  parser.add_argument(
    '--verify', metavar='DIR', help='check the tables in DIR against their runs'
  )
  parser.add_argument(
    '--recompute',
    metavar='SETTINGS',
    help='losses and metrics of these settings from the saved scores, e.g. '
    'loss=ipo:sigmoid,beta=.05:.5 (":" between the values of a key); with '
    '--out also recompute.csv',
  )
  options = parser.parse_args(arguments)
  others = options.runs or options.out or options.metrics or options.recompute
  if options.verify is not None and others:
    parser.error('--verify takes one folder, no RUNS and no other flag')
  if options.verify is None and not options.runs:
    parser.error('no runs given')
  if options.verify is None and not options.out and options.recompute is None:
    parser.error('--out is missing: the folder for the files')
  return options


def _report(paths: Sequence[str], out: str, metrics) -> int:
  from dpo_jax.results import plots  # takes two seconds; --verify draws nothing

  runs = collect.collect(paths)
  files, document = provenance.report(runs, out, metrics)
  files |= plots.curves(cells.make_table(runs, metrics))
  provenance.write(files, document, out)
  print(files['results.md'].decode(), end='')
  names = ', '.join([*files, provenance.FILE])
  print(f'{len(runs)} runs read; wrote {names} to {out}', file=sys.stderr)
  return 0


def _recompute(options: argparse.Namespace) -> int:
  # Imports jax, which tables do not need, and needs no accelerator: another
  # process may be training on it.
  os.environ.setdefault('JAX_PLATFORMS', 'cpu')
  from dpo_jax.results import recompute

  settings = recompute.parse(options.recompute)
  lines = recompute.recompute(options.runs, settings)
  chosen = recompute.choose(options.metrics, lines)
  print(recompute.markdown(lines, chosen), end='')
  if options.out:
    path = pathlib.Path(options.out) / 'recompute.csv'
    text = recompute.comma_separated(lines, chosen)
    with files.storage_errors(path), files.atomic_file(path) as file:
      file.write(text.encode())
    print(f'wrote {path}', file=sys.stderr)
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
