"""run directory -> table and figure: the command `python -m dpo_jax.results`.

    python -m dpo_jax.results RUNS... --out=DIR    tables, figures into DIR
    python -m dpo_jax.results RUNS... --out=DIR --metrics=loss,kl,entropy
    python -m dpo_jax.results --verify DIR         do they still follow?
    python -m dpo_jax.results RUNS... --recompute loss=ipo,beta=.05:.5
                                                   other losses, same scores

Comes in: run directories, or folders of them. Goes out: results.md, .tex and
.csv, figures/, figures.json, provenance.json; the Markdown on stdout. Exit code
0; 1 if --verify finds a cell that no longer follows from its runs; 2 for bad
input, with one line on stderr. Trains nothing and runs no model.
"""

import os
import sys
from collections.abc import Sequence

from dpo_jax.results import collect, options, provenance, verification
from dpo_jax.storage import files
from dpo_jax.types import InputError


def main(arguments: Sequence[str] | None = None) -> int:
  """Runs the command; returns its exit code."""
  # A terminal without ± and † shows escapes, not a traceback.
  sys.stdout.reconfigure(errors='backslashreplace')
  try:
    command = options.parse(arguments)
    if command.verify is not None:
      return _verify(command.verify)
    if command.recompute is not None:
      return _recompute(command)
    return _report(command)
  except InputError as error:
    print(error, file=sys.stderr)
    return 2
  except BrokenPipeError:
    # A reader such as `| head` has enough: no error, and no traceback when the
    # interpreter flushes at its end.
    sys.stderr.close()
    return 0


def _report(command: options.Command) -> int:
  chosen, out = command.options, command.out
  runs = collect.collect(command.runs, chosen.at)
  texts, document = provenance.report(runs, out, chosen)
  provenance.write(texts, document, out)
  print(texts['results.md'].decode(), end='')
  # Every figure has six files.
  own = dict.fromkeys(
    f'{folder}/' if folder else name
    for name in [*texts, provenance.FILE]
    for folder in [name.rpartition('/')[0]]
  )
  names = ', '.join(own)
  print(f'{len(runs)} runs read; wrote {names} to {out}', file=sys.stderr)
  return 0


def _recompute(command: options.Command) -> int:
  # Imports jax, which tables do not need, and needs no accelerator: another
  # process may be training on it.
  os.environ.setdefault('JAX_PLATFORMS', 'cpu')
  from dpo_jax.results import recompute

  settings = recompute.parse(command.recompute)
  lines = recompute.recompute(command.runs, settings)
  chosen = recompute.choose(command.options.metrics, lines)
  print(recompute.markdown(lines, chosen), end='')
  if command.out:
    path = files.at(command.out) / 'recompute.csv'
    text = recompute.comma_separated(lines, chosen)
    with files.storage_errors(path), files.atomic_file(path) as file:
      file.write(text.encode())
    print(f'wrote {path}', file=sys.stderr)
  return 0


def _verify(folder: str) -> int:
  problems = verification.verify(folder)
  for problem in problems:
    print(problem)
  if problems:
    print(f'{folder}: {len(problems)} problems; fix: make the tables again')
    return 1
  print(f'{folder}: every cell follows from its runs')
  return 0


if __name__ == '__main__':
  sys.exit(main())
