"""Reward against KL: what each loss gains for the distance that it moves.

Comes in: a report whose runs were sampled by --mode=frontier. Goes out: the
data of the figure `frontier`: per row, a point per step, the mean over seeds;
per loss, the frontier of all its rows, with a band over seeds. None if no run
was sampled. Draws nothing.
"""

from typing import Any

import numpy as np

from dpo_jax.results import collect, statistics
from dpo_jax.results.figures import looks, series, style
from dpo_jax.results.figures.report import Report

_Z = 1.96  # normal quantile of a 95 % interval over samples
_NUM_GRID = 40  # points of a frontier line


def data(report: Report) -> dict[str, Any] | None:
  """A panel per reward."""
  rewards = dict.fromkeys(
    entry.get('reward', 'reward')
    for row in report.table.rows
    for run in row.group.runs
    for entry in run.frontier.values()
  )
  if not rewards:
    return None
  plan = _without_dashes(looks.make_plan(report.table, every=True))
  panels = [_panel(report, plan, reward) for reward in rewards]
  drawn = [each for panel in panels for each in panel['series']]
  note = f'{plan.note} {_note(drawn)}'.strip()
  return {
    'caption': 'Mean reward of sampled answers to held-out prompts against '
    'the KL divergence of the policy from its reference, estimated on the '
    f'same samples; a point per step. {note} A frontier joins, in order of '
    'KL, the points of a loss that no point of smaller KL exceeds, per seed; '
    'it ends where a seed has no more points.',
    'note': note,
    'panels': panels,
    'columns': {'narrow': 1, 'wide': 2},
    **report.legend(plan),
  }


def _without_dashes(plan: looks.Plan) -> looks.Plan:
  """The plan with plain lines for losses, and markers alone for the rest."""
  entries = [
    look._replace(dashes='' if look.marker else 'solid')
    for look in plan.entries
  ]
  return plan._replace(entries=tuple(entries))


def _note(drawn: list[dict[str, Any]]) -> str:
  parts = []
  overs = {each['over'] for each in drawn if each['kind'] == 'points'} - {''}
  if overs:
    parts.append(f'Points: 95 % bars over {" or ".join(sorted(overs))}')
  lines = [each for each in drawn if each['kind'] == 'frontier']
  if lines:
    parts.append('line: frontier of a loss')
  if any(each['over'] for each in lines):
    parts.append('band: its 95 % interval over seeds')
  text = '; '.join(parts)
  return f'{text[0].upper()}{text[1:]}.' if text else ''


def _panel(report: Report, plan: looks.Plan, reward: str) -> dict[str, Any]:
  drawn = []
  for look in (*plan.context, *plan.looks):
    made = _points(report, look, reward)
    if made:
      drawn.append(made | {'context': look in plan.context})
  of_loss = {}
  for look in plan.looks:
    of_loss.setdefault(look.loss, []).append(look)
  for loss, members in of_loss.items():
    line = _frontier(report, members, loss, reward)
    if line:
      drawn.append(line)
  return {
    'title': '',
    'x_label': 'KL(policy ‖ reference), nats',
    'y_label': f'reward ({reward})',
    'x_least': 0.0,
    'series': drawn,
  }


def _read(run: collect.Run, reward: str) -> dict[int, tuple]:
  """step -> ((KL, its se), (reward, its se)) of one run."""
  steps = {}
  for step, facts in run.frontier.items():
    metrics = facts.get('metrics', {})
    if facts.get('reward', 'reward') != reward:
      continue
    if 'reward' in metrics and 'kl' in metrics:
      steps[step] = tuple(
        (metrics[name]['mean'], metrics[name].get('se'))
        for name in ('kl', 'reward')
      )
  return steps


def _seeds(group: collect.Group, reward: str) -> list[dict[int, tuple]]:
  """Per seed, step -> (KL, reward, se of the reward); repeats count once."""
  seeds = []
  for runs in group.by_seed():
    lists = {}
    for run in runs:
      for step, (kl, value) in _read(run, reward).items():
        lists.setdefault(step, []).append((kl[0], *value))
    if lists:
      seeds.append(
        {
          step: tuple(
            float(np.mean(c)) if None not in c else None for c in zip(*points)
          )
          for step, points in sorted(lists.items())
        }
      )
  return seeds


def _points(report: Report, look: looks.Look, reward: str):
  """One row: a point per step that all of its seeds have."""
  group = report.table.rows[look.row].group
  seeds = _seeds(group, reward)
  if not seeds:
    return None
  steps = sorted(set.intersection(*(set(seed) for seed in seeds)))
  points = []
  for step in steps:
    values = np.array([seed[step][:2] for seed in seeds], np.float64)
    kl, mean = values.mean(axis=0)
    half, over = None, ''
    if len(seeds) >= series.MIN_BAND:
      interval = statistics.mean_ci_t(values[:, 1])
      half, over = interval.high - interval.mean, 'seeds'
    elif len(seeds) == 1 and seeds[0][step][2] is not None:
      half, over = _Z * seeds[0][step][2], 'samples'
    ends = (None, None) if half is None else (mean - half, mean + half)
    points.append((kl, mean, *ends, over))
  runs = [run for run in group.runs if _read(run, reward)]
  return series.describe(look, runs, report.folder) | {
    'kind': 'points',
    'mark': 'points',
    'joined': False,
    'marker': look.marker or 'o',
    'steps': steps,
    'x': series.numbers(point[0] for point in points),
    'y': series.numbers(point[1] for point in points),
    'low': series.numbers(point[2] for point in points),
    'high': series.numbers(point[3] for point in points),
    'over': points[0][4] if points else '',
    'num_seeds': len(seeds),
  }


def _frontier(report: Report, members, loss: str, reward: str):
  """The frontier of a loss: mean over seeds, and its 95 % interval."""
  groups = [report.table.rows[look.row].group for look in members]
  by_seed = {}
  for group in groups:
    for run in group.runs:
      points = by_seed.setdefault(run.config.get('seed'), [])
      points += [(kl[0], value[0]) for kl, value in _read(run, reward).values()]
  paths = [undominated(points) for points in by_seed.values() if points]
  paths = [path for path in paths if len(path.x) > 1]
  if not paths:
    return None
  low = max(path.x[0] for path in paths)
  high = min(path.x[-1] for path in paths)
  if not high > low:
    return None
  grid = np.linspace(low, high, _NUM_GRID)
  lines = [series.Points(grid, np.interp(grid, *path)) for path in paths]
  runs = [run for group in groups for run in group.runs if _read(run, reward)]
  colours = {look.colour for look in members}
  look = members[0]._replace(
    label=loss,
    beta=None,
    # A single loss has a colour per beta: its frontier has none of them.
    colour=colours.pop() if len(colours) == 1 else style.INK,
    dashes='solid',
    marker='',
  )
  made = series.over_seeds(lines)
  made.pop('seeds', None)
  return (
    series.describe(look, runs, report.folder) | made | {'kind': 'frontier'}
  )


def undominated(points) -> series.Points:
  """Points that no point of smaller or equal KL exceeds, by KL.

  Args:
    points: (KL, reward) pairs.
  """
  best, kept = -np.inf, []
  for kl, reward in sorted(points, key=lambda point: (point[0], -point[1])):
    if reward > best:
      best = reward
      kept.append((kl, reward))
  return series.Points(*np.array(kept, np.float64).reshape(-1, 2).T)
