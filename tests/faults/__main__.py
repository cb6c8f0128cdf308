"""The scorecard: python -m tests.faults [--full] [--only=R1,R2] [--breaks].

  --full        the full figures, else those of the suite
  --only=NAMES  some of the lines
  --seed=N      of all that is drawn; 0 by default
  --minutes=N   a line ends early after so many, and the page says so
  --page        writes the lines that ran into docs/reliability.md
  --json=FILE   writes the counts
  --breaks      breaks a copy of the code once per line, which must show it

Exits with 1 if a line has a violation (with --breaks: if a break shows none).
"""

import argparse
import json
import pathlib
import shutil
import sys
import tempfile
import time
import traceback

sys.path[:0] = [
  str(pathlib.Path(__file__).resolve().parent),
  str(pathlib.Path(__file__).resolve().parents[2]),
]

import machine  # noqa: E402
import page  # noqa: E402
import table  # noqa: E402
from score import Line, OutOfTime  # noqa: E402


def main() -> int:
  """Runs the lines; returns the exit code."""
  parser = argparse.ArgumentParser()
  parser.add_argument('--full', action='store_true')
  parser.add_argument('--only', default=','.join(table.LINES))
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--minutes', type=float, default=1e9)
  parser.add_argument('--page', action='store_true')
  parser.add_argument('--json', default='')
  parser.add_argument('--breaks', action='store_true')
  words = parser.parse_args()
  names = words.only.split(',')
  if words.breaks:
    import breaks

    return breaks.run(names, words.page)
  top = pathlib.Path(tempfile.mkdtemp(prefix='dpo_jax_faults_'))
  results = {}
  page.commit()
  try:
    machine.load(f'{top}/cache')
    for name in names:
      results[name] = _run(name, top / name, words)
      if words.page:
        page.write(results[name], words.full)
  finally:
    shutil.rmtree(top, ignore_errors=True)
  if words.json:
    text = json.dumps({k: v._asdict() for k, v in results.items()})
    pathlib.Path(words.json).write_text(text)
  return int(any(r.violations for r in results.values()))


def _run(name: str, folder: pathlib.Path, words) -> page.Result:
  """Runs a line, and prints what it counted."""
  folder.mkdir()
  size = 'full' if words.full else 'small'
  line = Line(name, folder, words.seed, size, words.minutes)
  began, cpu = time.monotonic(), machine.cpu_seconds()
  try:
    table.LINES[name].run(line)
  except OutOfTime:
    line.notes.append('ended by --minutes')
  except Exception:
    line.violations.append(f'the program: {traceback.format_exc()[-1500:]}')
  shutil.rmtree(folder, ignore_errors=True)
  result = page.Result(
    name,
    line.faults,
    line.violations,
    line.notes,
    words.seed,
    time.monotonic() - began,
    machine.cpu_seconds() - cpu,
  )
  print(
    f'{name} {table.LINES[name].claim}: {line.faults} faults, '
    f'{len(line.violations)} violations, {result.wall:.0f} s, '
    f'{result.cpu:.0f} CPU-s'
    + ''.join(f'\n  {text}' for text in line.notes + line.violations),
    flush=True,
  )
  return result


if __name__ == '__main__':
  sys.exit(main())
