"""What a run has trained on, and how fast: the last lines of the ledger.

Comes in: the records of each batch as it is trained on. Goes out: counts that
lie in every checkpoint, and at the end whether they balance with what was
read; rates for the metrics.
"""

import time
from collections.abc import Mapping
from typing import Any

import numpy as np


class Rates:
  """Tokens and comparisons a second, between one step's report and the next."""

  def __init__(self):
    """The clock starts with the first report: it has the compile in it."""
    self._last = None

  def since_last(self, **amounts: float) -> dict[str, float]:
    """`{name}_per_second` of what was done since the last call."""
    now, last = time.perf_counter(), self._last
    self._last = now
    if last is None or now <= last:
      return {}
    return {f'{k}_per_second': v / (now - last) for k, v in amounts.items()}


class TrainedCounts:
  """How often each record of the training store was trained on."""

  def __init__(self, num_records: int):
    """Starts at zero."""
    self.counts = np.zeros(num_records, np.int32)
    self.num_tokens = 0  # input tokens so far, prompts once a row

  def add(self, records: np.ndarray, num_tokens: int) -> None:
    """Counts the records of a batch; -1 = empty place."""
    np.add.at(self.counts, records[records >= 0], 1)
    self.num_tokens += num_tokens

  def problems(
    self, indices: np.ndarray, num_prompts: int, same_order: bool = True
  ) -> list[str]:
    """What does not balance after a run; empty where all does.

    Args:
      indices: the records that belong to training.
      num_prompts: prompts that the run's updates had in all.
      same_order: whether one order of the records was kept throughout; a fork
        may change it.
    """
    mine = self.counts[indices]
    found = []
    if mine.sum() != num_prompts:
      found.append(f'{mine.sum()} prompts trained on, {num_prompts} planned')
    if mine.sum() != self.counts.sum():
      found.append('records outside the training part were trained on')
    if same_order and mine.max() - mine.min() > 1:
      found.append(
        f'a record was trained on {mine.max()} times, another {mine.min()}'
      )
    return found


def close_ledger(
  ledger: Mapping[str, Any], trained: TrainedCounts, indices: np.ndarray
) -> tuple[dict[str, Any], list[str]]:
  """The training data's ledger with its last lines, and what is wrong.

  rows read = trained on + not reached + held out + surplus + duplicates +
  dropped, by reason.

  Args:
    ledger: of encoding, with held_out and surplus where data was split off.
    trained: counts of the run.
    indices: the records that belong to training.

  Returns:
    (ledger, problems); no problems where it balances.
  """
  reached = int((trained.counts[indices] > 0).sum())
  closed = dict(ledger) | {
    'trained': reached,
    'not_reached': len(indices) - reached,
    'passes': float(trained.counts.sum() / max(len(indices), 1)),
  }
  parts = ('trained', 'not_reached', 'held_out', 'surplus', 'duplicates')
  total = sum(closed.get(part, 0) for part in parts)
  total += sum(closed['dropped'].values())
  problems = []
  if total != closed['read']:
    problems.append(f'{closed["read"]} rows read, {total} accounted for')
  return closed, problems


def summary(closed: Mapping[str, Any]) -> str:
  """The closed ledger in one line."""
  dropped = ', '.join(f'{n} {why}' for why, n in closed['dropped'].items())
  return (
    f'ledger: {closed["read"]} rows read = {closed["trained"]} trained on'
    f' ({closed["passes"]:.2f} passes) + {closed["not_reached"]} not reached'
    f' + {closed.get("held_out", 0)} held out'
    f' + {closed.get("surplus", 0)} surplus'
    f' + {closed["duplicates"]} duplicates'
    f' + {sum(closed["dropped"].values())} dropped'
    + (f' ({dropped})' if dropped else '')
  )
