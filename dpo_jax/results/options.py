"""Flags -> options of a report: which tables, figures and page are made.

    --columns=loss,beta,accuracy   label columns and metrics, in this order
    --rows=loss=ipo:sigmoid,beta=0.1   only these rows
    --paper=FILE                   the same from `PAPER` in a Python file

Comes in: the words of the command line, or the JSON that provenance.json
keeps. Goes out: a `Command` with its `Options`. Checks the form of every flag;
names of metrics and keys are checked where the runs are known.
"""

import argparse
import math
import re
import runpy
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from dpo_jax import errors

_HELP = 'see python -m dpo_jax.results --help'
WIDTHS = ('column', 'text')


class At(NamedTuple):
  """The evaluation that cells are of."""

  kind: str = 'last'  # last, best, tokens or kl
  limit: float | None = None  # of tokens and kl
  metric: str = ''  # of best; '' = train.keep_best of the run

  def __str__(self) -> str:
    """As the flag writes it."""
    if self.limit is not None:
      return f'{self.kind}={self.limit:g}'
    return f'{self.kind}:{self.metric}' if self.metric else self.kind


class Options(NamedTuple):
  """What a report shows, and how; every field has a JSON form."""

  columns: tuple[str, ...] | None = None  # labels and metrics; None = by rule
  rows: tuple[tuple[str, tuple[str, ...]], ...] = ()  # key -> values to keep
  metrics: tuple[str, ...] | None = None  # names in metrics.jsonl
  # What other rows are compared with, as key -> value; () = the first row,
  # None = nothing.
  baseline: tuple[tuple[str, str], ...] | None = ()
  sort: tuple[str, ...] = ()  # label columns or metrics; '-' = descending
  transpose: bool = False  # rows become columns
  label: tuple[tuple[str, str], ...] = ()  # key, metric or value -> its name
  at: At = At()
  figures: tuple[str, ...] | None = None  # names; () = none, None = a few
  html: bool = False  # also index.html
  width: str = ''  # column or text; '' = the narrowest that fits

  def as_json(self) -> dict[str, Any]:
    """The options as provenance.json keeps them."""
    return {**self._asdict(), 'at': str(self.at)}


class Command(NamedTuple):
  """One command line."""

  runs: tuple[str, ...]
  out: str | None
  verify: str | None
  recompute: str | None
  options: Options


class _Parser(argparse.ArgumentParser):
  """Refuses bad flags in one line; the usage is under --help."""

  def error(self, message: str):
    raise errors.refuse('command line', message, _HELP)


def parse(arguments: Sequence[str] | None = None) -> Command:
  """Reads a command line.

  Args:
    arguments: its words; None takes those of the process.

  Raises:
    InputError: an unknown flag, or a value of another form.
  """
  parser = _parser()
  # A flag may be repeated in a script: the last one counts.
  given = vars(parser.parse_args(arguments))
  runs, out, verify, recompute, paper = (
    given.pop(key) for key in ('runs', 'out', 'verify', 'recompute', 'paper')
  )
  given = {key: value for key, value in given.items() if value is not None}
  if verify is not None and (runs or out or recompute or paper or given):
    parser.error('--verify takes one folder, no RUNS and no other flag')
  if verify is None and not runs:
    parser.error('no runs given')
  if verify is None and not out and recompute is None:
    parser.error('--out is missing: the folder for the files')
  others = {f'--{key}' for key in given if key != 'metrics'}
  others |= {'--paper'} if paper else set()
  if recompute is not None and others:
    parser.error(f'--recompute takes --metrics and --out, not {min(others)}')
  options = {**(_read_paper(paper) if paper else {}), **given}
  return Command(
    tuple(runs), out, verify, recompute, _make(options, '--{}'.format)
  )


def from_json(value: Mapping[str, Any]) -> Options:
  """The options of a provenance.json; keys that it lacks have defaults.

  Raises:
    InputError: an unknown key, or a value of another form.
  """
  return _make(value, 'provenance.json: options.{}'.format)


def _parser() -> _Parser:
  parser = _Parser(
    prog='python -m dpo_jax.results',
    description='Tables, figures and a page from run directories.',
  )
  parser.add_argument(
    'runs',
    nargs='*',
    metavar='RUNS',
    help='run directories, or folders of them',
  )
  parser.add_argument('--out', metavar='DIR', help='folder for the files')
  parser.add_argument(
    '--verify', metavar='DIR', help='check the files in DIR against their runs'
  )
  parser.add_argument(
    '--recompute',
    metavar='SETTINGS',
    help='losses and metrics of these settings from the saved scores, e.g. '
    'loss=ipo:sigmoid,beta=.05:.5 (":" between the values of a key); with '
    '--out also recompute.csv',
  )
  for name, (metavar, text) in _FLAGS.items():
    parser.add_argument(f'--{name}', metavar=metavar, help=text)
  for name, text in _SWITCHES.items():
    parser.add_argument(
      f'--{name}', action='store_const', const=True, help=text
    )
  return parser


_FLAGS = {
  'paper': ('FILE', 'a Python file whose PAPER says what the flags below say'),
  'columns': (
    'NAMES',
    'label columns (config keys) and metrics, in order; a metric alone is its '
    'value after training, "METRIC before" that at step 0',
  ),
  'rows': (
    'KEYS',
    'only the rows with these values, e.g. loss=ipo:sigmoid,beta=0.1',
  ),
  'metrics': ('NAMES', 'names in metrics.jsonl, with commas between'),
  'baseline': (
    'ROW',
    'what other rows are compared with, e.g. loss=sigmoid,beta=0.1; default: '
    'the first row; or none',
  ),
  'sort': (
    'NAMES',
    'label columns or metrics, "-" before one for descending, e.g. '
    'loss,-accuracy',
  ),
  'label': (
    'NAMES',
    'names for columns, metrics and values, e.g. loss=Loss,sigmoid=DPO',
  ),
  'at': (
    'STEP',
    'the evaluation that cells are of: last (default), best (of the '
    "run's train.keep_best), best:METRIC (-METRIC if low is good), tokens=N or "
    'kl=X (the last one within the budget)',
  ),
  'figures': ('NAMES', 'names of figures, all, or none; default: a few'),
  'width': (
    'PLACE',
    'column or text: what results.tex and figures fit; default: the narrowest '
    'place that fits',
  ),
}
_SWITCHES = {
  'transpose': 'metrics down, rows of the table across',
  'html': 'also index.html, a page that opens offline',
}


def _read_paper(path: str) -> dict[str, Any]:
  """The options that a Python file gives in PAPER, a dict or a function."""
  where = f'--paper={path}'
  fix = 'name a Python file with PAPER = {"columns": [...], ...}'
  try:
    value = runpy.run_path(path).get('PAPER')
    value = value() if callable(value) else value
  except Exception as error:  # the user's own code may raise anything
    first = (str(error).splitlines() or [''])[0]
    problem = f'cannot be run ({type(error).__name__}: {first})'
    raise errors.refuse(where, problem, fix) from error
  if not isinstance(value, Mapping):
    raise errors.refuse(where, 'has no PAPER, or one that is no dict', fix)
  _make(value, f'{where}: {{}}'.format)
  return dict(value)


def _make(given: Mapping[str, Any], where) -> Options:
  """Options from texts of flags, or from values of JSON and Python."""
  for key in given:
    if key not in _READ:
      raise errors.refuse(
        where(key),
        'no such option',
        f'{errors.did_you_mean(str(key), _READ)}use any of {", ".join(_READ)}',
      )
  return Options(
    **{key: _READ[key](value, where(key)) for key, value in given.items()}
  )


def _names(value: Any, where: str) -> tuple[str, ...] | None:
  """'a, b' or ['a', 'b'] -> ('a', 'b')."""
  if value is None:
    return None
  parts = value.split(',') if isinstance(value, str) else value
  if not isinstance(parts, list | tuple):
    raise errors.refuse(where, f'{value!r} is no list', 'write a,b')
  names = tuple(str(part).strip() for part in parts)
  if not all(names):
    raise errors.refuse(
      where, f'{value!r} has an empty name', 'write names with commas between'
    )
  repeated = [name for name in names if names.count(name) > 1]
  if repeated:
    raise errors.refuse(
      where, f'{repeated[0]!r} is there twice', 'name it once'
    )
  return names


def _figures(value: Any, where: str) -> tuple[str, ...] | None:
  return () if value == 'none' else _names(value, where)


def _rows(value: Any, where: str) -> tuple[tuple[str, tuple[str, ...]], ...]:
  """'a=1:2,b=3' or {'a': [1, 2], 'b': 3} -> (('a', ('1', '2')), ...)."""
  rows = []
  for key, values in _pairs(value, where):
    if isinstance(values, str):
      values = values.split(':')
    elif not isinstance(values, list | tuple):
      values = [values]
    texts = tuple(as_text(each).strip() for each in values)
    if not texts or not all(texts):
      raise errors.refuse(where, f'{key!r} has an empty value', 'write a=1:2')
    rows.append((key, texts))
  return tuple(rows)


def _baseline(value: Any, where: str) -> tuple[tuple[str, str], ...] | None:
  if value is None or value == 'none':
    return None
  pairs = tuple((key, as_text(each)) for key, each in _pairs(value, where))
  for key, text in pairs:
    if not text:
      raise errors.refuse(where, f'{key!r} has no value', 'write loss=sigmoid')
  return pairs


def _labels(value: Any, where: str) -> tuple[tuple[str, str], ...]:
  return tuple((key, str(each)) for key, each in _pairs(value, where))


def _pairs(value: Any, where: str) -> list[tuple[str, Any]]:
  """'a=1,b=2', {'a': 1} or [['a', 1]] -> pairs; each key once."""
  if isinstance(value, str):
    pairs = []
    for item in value.split(','):
      key, equals, rest = (part.strip() for part in item.partition('='))
      if not equals or not key:
        raise errors.refuse(
          where, f'{item!r} is not of the form key=value', 'write e.g. beta=0.1'
        )
      pairs.append((key, rest))
  elif isinstance(value, Mapping):
    pairs = [(str(key), each) for key, each in value.items()]
  elif isinstance(value, list | tuple):
    pairs = [(str(key), each) for key, each in value]
  else:
    raise errors.refuse(where, f'{value!r} is no mapping', 'write beta=0.1')
  keys = [key for key, _ in pairs]
  if len(set(keys)) < len(keys):
    raise errors.refuse(where, 'a key is there twice', 'name it once')
  return pairs


def _switch(value: Any, where: str) -> bool:
  if not isinstance(value, bool):
    raise errors.refuse(where, f'{value!r} is no bool', 'use True or False')
  return value


def _width(value: Any, where: str) -> str:
  if value not in ('', *WIDTHS):
    raise errors.refuse(
      where, f'{value!r} is not allowed', f'use {" or ".join(WIDTHS)}'
    )
  return value


def _at(value: Any, where: str) -> At:
  """'last', 'best', 'best:METRIC', 'tokens=N' or 'kl=X'."""
  text = str(value)
  budget = re.fullmatch(r'(tokens|kl)=(.*)', text)
  if budget:
    try:
      limit = float(budget[2])
    except ValueError:
      limit = math.nan
    if math.isfinite(limit) and limit >= 0:
      return At(budget[1], limit)
  elif text in ('last', 'best'):
    return At(text)
  elif text.removeprefix('best:').strip('- ') and text.startswith('best:'):
    return At('best', metric=text.removeprefix('best:').strip())
  raise errors.refuse(
    where,
    f'{text!r} is not allowed',
    'use last, best, best:METRIC, tokens=N or kl=X',
  )


def as_text(value: Any) -> str:
  """A value as flags and labels write it: null, true, 0.1, 5e-07."""
  if value is None or isinstance(value, bool):
    return {None: 'none', True: 'true', False: 'false'}[value]
  return f'{value:.12g}' if isinstance(value, float) else str(value)


_READ = {
  'columns': _names,
  'rows': _rows,
  'metrics': _names,
  'baseline': _baseline,
  'sort': lambda value, where: _names(value, where) or (),
  'transpose': _switch,
  'label': _labels,
  'at': _at,
  'figures': _figures,
  'html': _switch,
  'width': _width,
}
