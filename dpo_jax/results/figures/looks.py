"""Rows of a table -> looks: which are drawn, and how each is told apart.

Comes in: a `Table`. Goes out: a `Plan`: colour, dashes and marker per row, the
entries of the legend, and a sentence on what is left out. Colour is the loss,
dashes and marker are beta and whatever else differs; with a single loss,
colour follows beta. Draws nothing.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from dpo_jax.results import cells, labels, measures
from dpo_jax.results.figures import style

BETA, TERMS = 'loss.beta', 'loss.terms'
MAX_ROWS = 9  # more lines in a panel of 1.3 inches cannot be followed
MAX_THIN = 4  # lines in a panel beside which single seeds do not clutter
MAX_ENTRIES = 6  # more shades than that get a colour bar
CONTEXT = 'other groups'  # what is pale


class Look(NamedTuple):
  """How a row is drawn."""

  row: int  # index in the table
  label: str  # of the whole row, such as 'DPO, β = 0.1'
  loss: str  # the registry's label
  variant: str  # whatever else differs, such as 'β = 0.1'; may be ''
  beta: float | None  # config.loss.beta
  colour: str
  dashes: str = 'solid'  # key of style.DASHES
  marker: str = ''  # '' = none


class Plan(NamedTuple):
  """What a figure draws of a table."""

  looks: tuple[Look, ...]  # rows that are drawn in full
  context: tuple[Look, ...]  # pale rows
  entries: tuple[Look, ...]  # of the legend; their `row` means nothing
  scale: tuple[float, float] | None  # ends of the colour bar of beta
  note: str  # on the choice; '' if every row is drawn

  @property
  def thin(self) -> bool:
    """Whether there is room for the lines of single seeds."""
    return len(self.looks) <= MAX_THIN


def loss_label(config: dict[str, Any]) -> str:
  """The registry's label of a config's losses, such as 'DPO + 0.2 SFT'."""
  terms = config.get('loss', {}).get('terms') or {}
  used = {name: weight for name, weight in terms.items() if weight}
  return labels.loss_label(used) if used else 'no loss'


def beta_of(config: dict[str, Any]) -> float | None:
  """config.loss.beta; None if it is no number."""
  beta = config.get('loss', {}).get('beta')
  is_number = isinstance(beta, int | float) and not isinstance(beta, bool)
  return float(beta) if is_number else None


def rest_of(table: cells.Table, row: int, *left_out: str) -> str:
  """The label columns of a row without some keys: 'learning_rate = 1e-05'."""
  left_out = {*left_out, *implied(table)}
  parts = [
    f'{name} = {value}'
    for key, name, value in zip(
      table.labels.keys, table.labels.names, table.rows[row].label
    )
    if key not in left_out
  ]
  return ', '.join(parts)


def implied(table: cells.Table) -> set[str]:
  """Label columns that say no more than the loss, as its own constants do."""
  pairs = {}
  for row in table.rows:
    loss = loss_label(row.group.runs[0].config)
    for key, value in zip(table.labels.keys, row.label):
      pairs.setdefault(key, {}).setdefault(loss, set()).add(value)
  return {
    key
    for key, values in pairs.items()
    if len(values) > 1 and all(len(each) == 1 for each in values.values())
  }


def make_plan(table: cells.Table, every: bool = False) -> Plan:
  """Chooses what a figure with all rows in one panel shows.

  Args:
    table: the rows.
    every: whether all rows of a loss are shown, however many; else its best
      one if there are more than MAX_ROWS.
  """
  looks = [_plain(table, row) for row in range(len(table.rows))]
  losses = list(dict.fromkeys(look.loss for look in looks))
  if len(losses) == 1:
    return _one_loss(table, looks)
  kept = best_losses(table)
  own = [look for look in looks if look.loss in kept]
  shown = styled(own, kept)
  order = by_score(table, own)
  note = ''
  if len(kept) < len(losses):
    note = (
      f'Shown: the {len(kept)} of {len(losses)} losses with the {order.by}.'
    )
  if len(shown) > MAX_ROWS and not every:
    best = {}
    for row in order.rows:
      best.setdefault(looks[row].loss, row)
    shown = distinct([look for look in shown if look.row in best.values()])
    which = f'the {len(kept)} best losses' if note else 'each loss'
    note = (
      f'Shown: of {which} the group with the {order.by} '
      f'({len(shown)} of {len(looks)}).'
    )
  rows = {look.row for look in shown}
  context = tuple(pale(look) for look in looks if look.row not in rows)
  return Plan(tuple(shown), context, entries(shown, context), None, note)


def best_losses(table: cells.Table) -> list[str]:
  """The losses that have a colour of their own, in the table's order.

  The same in every figure: of more losses than colours, the best.
  """
  looks = [_plain(table, row) for row in range(len(table.rows))]
  order = by_score(table, looks).rows
  best = list(dict.fromkeys(looks[row].loss for row in order))
  best = best[: len(style.COLOURS)]
  return [loss for loss in dict.fromkeys(x.loss for x in looks) if loss in best]


def _plain(table: cells.Table, row: int) -> Look:
  config = table.rows[row].group.runs[0].config
  loss, beta = loss_label(config), beta_of(config)
  parts = [rest_of(table, row, TERMS, BETA)]
  if BETA in table.labels.keys and beta is not None:
    parts.insert(0, f'β = {beta:g}')
  variant = ', '.join(part for part in parts if part)
  # A row alone is labelled by its folder, which says more than its loss.
  label = ', '.join(part for part in (loss, variant) if part)
  if not table.labels.keys:
    label = ', '.join(table.rows[row].label)
  return Look(row, label, loss, variant, beta, style.COLOURS[0])


def _variants(looks: Sequence[Look]) -> list[str]:
  """The distinct variants, by beta, then as in the table."""
  first = {}
  for look in looks:
    first.setdefault(look.variant, (look.beta or 0.0, look.row))
  return sorted(first, key=first.get)


def styled(looks: Sequence[Look], losses: list[str]) -> list[Look]:
  """Colour by loss, dashes and marker by the rest."""
  variants, dashes = _variants(looks), list(style.DASHES)
  coloured = [
    look._replace(colour=style.COLOURS[losses.index(look.loss)])
    for look in looks
  ]
  # Where beta does not differ, dashes tell losses apart without colour.
  if len(variants) == 1:
    return distinct(coloured)
  index = [variants.index(look.variant) for look in looks]
  return [
    look._replace(
      dashes=dashes[i % len(dashes)],
      marker=style.MARKERS[i % len(style.MARKERS)],
    )
    for i, look in zip(index, coloured)
  ]


def entries(shown: Sequence[Look], context: Sequence[Look]):
  """One entry per row, or per loss and per variant if those are fewer."""
  losses = {look.loss for look in shown}
  variants = _variants(shown)
  last = tuple(look._replace(label=CONTEXT) for look in context[:1])
  is_product = min(len(losses), len(variants)) > 1
  if not is_product or len(losses) + len(variants) >= len(shown):
    return (*shown, *last)
  by_loss = {}
  for look in shown:
    plain = look._replace(label=look.loss, dashes='solid', marker='')
    by_loss.setdefault(look.loss, plain)
  first = {look.variant: look for look in reversed(shown)}
  grey = [
    first[variant]._replace(label=variant or 'default', colour=style.GREY)
    for variant in variants
  ]
  return (*by_loss.values(), *grey, *last)


def _one_loss(table: cells.Table, looks: list[Look]) -> Plan:
  """Colour follows beta, or the other keys, if there is a single loss."""
  short = [look._replace(label=look.variant or look.label) for look in looks]
  betas = [look.beta or 0.0 for look in looks]
  is_scale = BETA == ''.join(table.labels.keys) and min(betas) > 0
  if is_scale and len(looks) > 2:
    ranks = sorted(betas)
    places = _log_places(ranks)
    shaded = [
      look._replace(colour=style.shade(places[ranks.index(look.beta)]))
      for look in short
    ]
    if len(looks) > MAX_ENTRIES:
      return Plan(tuple(shaded), (), (), (ranks[0], ranks[-1]), '')
    return _all(distinct(shaded))
  num = len(style.COLOURS)
  if len(looks) <= num:
    return _all(distinct(coloured(short)))
  order = by_score(table, looks)
  rows = sorted(order.rows[:num])
  chosen = distinct(coloured([short[row] for row in rows]))
  context = tuple(pale(look) for look in looks if look.row not in rows)
  note = f'Shown: the {num} of {len(looks)} groups with the {order.by}.'
  return Plan(tuple(chosen), context, entries(chosen, context), None, note)


def _all(looks: list[Look]) -> Plan:
  return Plan(tuple(looks), (), tuple(looks), None, '')


def distinct(looks: Sequence[Look]) -> list[Look]:
  """Dashes and a marker of its own for each."""
  dashes = list(style.DASHES)
  return [
    look._replace(
      dashes=dashes[index % len(dashes)],
      marker=style.MARKERS[index % len(style.MARKERS)],
    )
    for index, look in enumerate(looks)
  ]


def coloured(looks: Sequence[Look]) -> list[Look]:
  """A colour of its own for each of at most seven."""
  return [
    look._replace(colour=colour) for look, colour in zip(looks, style.COLOURS)
  ]


def pale(look: Look) -> Look:
  """The look of a row that is only there for comparison."""
  return look._replace(colour=style.PALE, dashes='solid', marker='')


def _log_places(values: list[float]) -> list[float]:
  """Places of ascending numbers on a log scale, 0 to 1."""
  low, high = math.log(values[0]), math.log(values[-1])
  return [(math.log(value) - low) / (high - low) for value in values]


class Order(NamedTuple):
  """Rows, the best first."""

  rows: list[int]
  by: str  # what is best, such as 'highest accuracy'


def by_score(table: cells.Table, looks: Iterable[Look]) -> Order:
  """Orders rows by accuracy; by loss if none has one; else as in the table."""
  rows = [look.row for look in looks]
  for label, sign, by in (
    (measures.ACCURACY.label, -1, 'highest held-out accuracy'),
    (measures.LOSS.label, 1, 'lowest held-out loss'),
  ):
    values = {row: _value(table.rows[row], label) for row in rows}
    if any(value is not None for value in values.values()):
      scores = {
        row: math.inf if value is None else sign * value
        for row, value in values.items()
      }
      return Order(sorted(rows, key=scores.get), by)
  return Order(rows, 'first place in the table')


def _value(row: cells.Row, label: str) -> float | None:
  cell = row.cells.get((label, 'after'))
  value = cell.value if cell is not None else None
  return value if value is not None and math.isfinite(value) else None
