"""Calibration: does a probability that the rewards imply come true?

Comes in: a report. Goes out: the data of the figure `calibration`: per row,
the share of held-out comparisons that agree with the rewards' own preference,
against the probability sigmoid(|margin|) that the Bradley-Terry model gives
it. None if no run saved rewards of comparisons. Draws nothing.
"""

from typing import Any

import numpy as np
from scipy import special

from dpo_jax.results import statistics
from dpo_jax.results.figures import looks, pooled, series
from dpo_jax.results.figures.report import Report

_NUM_BINS = 5
_LEAST = 20  # comparisons in a bin
_REWARD = ('reward_chosen', 'reward_rejected')


def data(report: Report) -> dict[str, Any] | None:
  """One panel, with the diagonal of perfect calibration."""
  plan = looks.make_plan(report.table)
  drawn = [
    line for look in plan.looks if (line := _line(report, look)) is not None
  ]
  if not drawn:
    return None
  note = f'{plan.note} Bars: 95 % (Wilson, by prompt). Grey line: perfect.'
  entries = tuple(look for look in plan.entries if look.label != looks.CONTEXT)
  return {
    'caption': 'Share of held-out comparisons in which the answer that the '
    'rewards prefer is the chosen one, against the probability '
    'sigmoid(|reward margin|) that they imply, in bins of about equally many '
    f'comparisons, seeds pooled. {note.strip()} The probability is that of '
    'the Bradley-Terry model, whatever the loss.',
    'note': note.strip(),
    'panels': [
      {
        'title': '',
        'x_label': 'implied probability of the preferred answer',
        'y_label': 'share that the label agrees',
        'x_range': [0.48, 1.02],
        'y_range': _range(drawn),
        'guides': [{'points': [[0.5, 0.5], [1.0, 1.0]]}],
        'series': drawn,
      }
    ],
    'columns': {'narrow': 1, 'wide': 1},
    **report.legend(plan._replace(entries=entries)),
  }


def _range(drawn: list[dict[str, Any]]) -> list[float]:
  lowest = min(low for each in drawn for low in [*each['low'], 0.5] if low)
  return [min(0.45, lowest - 0.02), 1.03]


def _line(report: Report, look: looks.Look) -> dict[str, Any] | None:
  """Bins of one row; None if it saved no rewards, or all of them tie."""
  values = pooled.pool(report.table.rows[look.row].group, *_REWARD)
  if values is None:
    return None
  margin = values.fields[_REWARD[0]] - values.fields[_REWARD[1]]
  counted = np.flatnonzero((values.weight > 0) & (margin != 0))
  if not counted.size:
    return None
  implied = special.expit(np.abs(margin))
  num = max(1, min(_NUM_BINS, len(counted) // _LEAST))
  points = []
  for bin in pooled.equal_bins(implied[counted], num):
    inside = counted[bin]
    weight = values.weight[inside]
    share = statistics.clustered_share(
      margin[inside] > 0, values.prompt[inside], weight
    )
    points.append(
      (np.average(implied[inside], weights=weight), share, len(inside))
    )
  return series.describe(look, values.runs, report.folder) | {
    'mark': 'points',
    'x': series.numbers(x for x, _, _ in points),
    'y': series.numbers(share.mean for _, share, _ in points),
    'low': series.numbers(share.low for _, share, _ in points),
    'high': series.numbers(share.high for _, share, _ in points),
    'num': [num for _, _, num in points],
    'over': 'prompts',
    'num_seeds': values.num_seeds,
  }
