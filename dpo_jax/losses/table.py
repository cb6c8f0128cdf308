"""The registry as the README's table.

Comes in: the registry, and the README's text. Goes out: Markdown text. Writes
no file: `scripts/loss_table.py` does.
"""

from dpo_jax import errors
from dpo_jax.losses import registry

# What stands before and after the table in the README.
MARKS = (
  '<!-- losses: written by scripts/loss_table.py -->\n\n',
  '\n<!-- end of losses -->\n',
)

_HEADER = ('name', 'formula', 'paper', 'needs')


def table() -> str:
  """Markdown rows of every loss and then every option, ending in a newline."""
  losses = [registry.get(name) for name in registry.names()]
  options = [registry.get_option(name) for name in registry.option_names()]
  rows = [_HEADER, ('---',) * len(_HEADER)]
  for loss in losses:
    rows.append(_row(loss.name, loss))
  for option in options:
    taken = f'{" and ".join(option.accepts)} losses'.replace('_', '-')
    if option.changes == 'reference':
      taken = 'the reference'
    rows.append(_row(f'{option.name} (option of {taken})', option))
  return ''.join(f'| {" | ".join(row)} |\n' for row in rows)


def refresh_table(readme: str) -> str:
  """The README's text with what is between MARKS written anew.

  Raises:
    InputError: the text has no such place.
  """
  before, start, rest = readme.partition(MARKS[0])
  _, end, after = rest.partition(MARKS[1])
  if not end:
    raise errors.refuse(
      'README.md',
      'no place for the table of losses',
      f'put {MARKS[0].strip()} and {MARKS[1].strip()} into it',
    )
  return before + start + table() + end + after


def _row(name, entry) -> tuple[str, ...]:
  needs = ', '.join(sorted(entry.needs)).replace('_', ' ') or '-'
  cells = (name, f'`{entry.formula}`', entry.paper, needs)
  return tuple(cell.replace('|', '\\|') for cell in cells)
