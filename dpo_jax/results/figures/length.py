"""Length against reward: does the implicit reward follow an answer's length?

Comes in: a report. Goes out: the data of the figure `length`: a panel per
side, a line per row, the mean reward of held-out answers in bins of their
length. None if no run saved lengths and rewards. Draws nothing.
"""

from typing import Any

import numpy as np

from dpo_jax.results import statistics
from dpo_jax.results.figures import looks, pooled, series
from dpo_jax.results.figures.report import Report

_NUM_BINS = 8
_LEAST = 12  # answers in a bin
_SIDES = {
  'chosen': ('chosen_tokens', 'reward_chosen'),
  'rejected': ('rejected_tokens', 'reward_rejected'),
  'labelled': ('num_tokens', 'reward'),
}


def data(report: Report) -> dict[str, Any] | None:
  """Chosen and rejected answers, or labelled ones."""
  plan = looks.make_plan(report.table)
  panels = [
    panel
    for side in _SIDES
    if (panel := _panel(report, plan, side)) is not None
  ]
  lengths = {len(each['x']) for panel in panels for each in panel['series']}
  # Answers of one length tell nothing of length.
  if lengths <= {1}:
    return None
  panels[0]['y_label'] = 'reward (nats)'
  drawn = [each for panel in panels for each in panel['series']]
  note = f'{plan.note} {series.interval_note(drawn)}'.replace(
    'Line: mean of', 'Pooled over'
  ).strip()
  return {
    'caption': 'Mean implicit reward of held-out answers after training '
    'against their length, in bins of about equally many answers, the same '
    f'for every line. {note}',
    'note': note,
    'panels': panels,
    'columns': {'narrow': 2, 'wide': 2},
    **report.legend(plan._replace(entries=_entries(plan))),
  }


def _entries(plan: looks.Plan) -> tuple[looks.Look, ...]:
  return tuple(look for look in plan.entries if look.label != looks.CONTEXT)


def _panel(report: Report, plan: looks.Plan, side: str):
  fields = _SIDES[side]
  found = {}
  for look in plan.looks:
    values = pooled.pool(report.table.rows[look.row].group, *fields)
    if values is not None and not _all_zero(values, fields[1]):
      found[look] = values
  if not found:
    return None
  lengths = np.concatenate([v.fields[fields[0]] for v in found.values()])
  # Edges are common, so that the lines compare.
  least = min(len(values.weight) for values in found.values())
  num = max(1, min(_NUM_BINS, least // _LEAST))
  bins = pooled.equal_bins(lengths, num)
  edges = np.array([lengths[index].min() for index in bins][1:])
  return {
    'title': f'{side} answers',
    'x_label': 'length (tokens)',
    'x_whole': True,
    'y_label': '',
    'share_y': 'reward',
    'guides': [{'y': 0.0}],
    'series': [
      _line(report, look, values, fields, edges)
      for look, values in found.items()
    ],
  }


def _all_zero(values: pooled.Pooled, field: str) -> bool:
  """Whether the policy still equals its reference."""
  return not np.any(values.fields[field])


def _line(report: Report, look, values: pooled.Pooled, fields, edges):
  """Mean reward per bin of length, with its interval over prompts."""
  length, reward = (values.fields[name] for name in fields)
  index = np.digitize(length, edges)
  points = []
  for bin in range(len(edges) + 1):
    inside = (index == bin) & (values.weight > 0)
    if inside.any():
      weight = values.weight[inside]
      interval = statistics.clustered_mean(
        reward[inside], values.prompt[inside], weight
      )
      mean_length = np.average(length[inside], weights=weight)
      points.append((mean_length, interval, int(inside.sum())))
  return series.describe(look, values.runs, report.folder) | {
    'x': series.numbers(length for length, _, _ in points),
    'y': series.numbers(interval.mean for _, interval, _ in points),
    'low': series.numbers(interval.low for _, interval, _ in points),
    'high': series.numbers(interval.high for _, interval, _ in points),
    'num': [num for _, _, num in points],
    'over': 'prompts',
    'num_seeds': values.num_seeds,
  }
