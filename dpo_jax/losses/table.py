"""Table of the registered losses and options for docs/losses.md.

Comes in: the registry, and the text of docs/losses.md. Goes out: Markdown
text. Writes no file: `scripts/loss_table.py` does.
"""

from dpo_jax import errors
from dpo_jax.losses import registry
from dpo_jax.losses.records import Loss, Option

# The lines of docs/losses.md before and after the table.
MARKS = (
  '<!-- losses: written by scripts/loss_table.py -->\n\n',
  '\n<!-- end of losses -->\n',
)

_HEADER = ('name', 'formula', 'paper', 'needs')


def table() -> str:
  """Markdown rows of all losses, then of all options; ends in a newline."""
  losses = [registry.get(name) for name in registry.names()]
  options = [registry.get_option(name) for name in registry.option_names()]
  rows = [_HEADER, ('---',) * len(_HEADER)]
  rows += [_row(loss.name, loss) for loss in losses]
  rows += [
    _row(f'{option.name} (option of {_accepted(option)})', option)
    for option in options
  ]
  return ''.join(f'| {" | ".join(row)} |\n' for row in rows)


def refresh_table(text: str) -> str:
  """Returns the text of docs/losses.md with a new table between MARKS.

  Raises:
    InputError: the text does not have both marks.
  """
  before, start, rest = text.partition(MARKS[0])
  _, end, after = rest.partition(MARKS[1])
  if not end:
    raise errors.refuse(
      'docs/losses.md',
      'no place for the table of losses',
      f'put {MARKS[0].strip()} and {MARKS[1].strip()} into it',
    )
  return before + start + table() + end + after


def _accepted(option: Option) -> str:
  """The losses that take the option, in words."""
  if option.changes == 'reference':
    return 'the reference'
  kinds = [kind.replace('_', '-') for kind in option.accepts]
  last_two = ' and '.join(kinds[-2:])
  return f'{", ".join([*kinds[:-2], last_two])} losses'


def _row(name: str, entry: Loss | Option) -> tuple[str, ...]:
  needs = ', '.join(sorted(entry.needs)).replace('_', ' ') or '-'
  cells = (name, f'`{entry.formula}`', entry.paper, needs)
  # A bar would end the cell.
  return tuple(cell.replace('|', '\\|') for cell in cells)
