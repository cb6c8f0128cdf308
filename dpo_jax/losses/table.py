"""The registry as the README's table.

Comes in: the registry. Goes out: Markdown text. Writes no file.
"""

from dpo_jax.losses import registry

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


def _row(name, entry) -> tuple[str, ...]:
  needs = ', '.join(sorted(entry.needs)).replace('_', ' ') or '-'
  cells = (name, f'`{entry.formula}`', entry.paper, needs)
  return tuple(cell.replace('|', '\\|') for cell in cells)
