"""batches -> counts of trained records; the ledger's last lines.

Comes in: the records of each batch that was trained on. Goes out: counts that
are saved in every checkpoint and, at the end, compared with the rows read.
Prints nothing.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np


class TrainedCounts:
  """How often each record of the training store was trained on."""

  def __init__(self, num_records: int):
    """Starts at zero."""
    self.counts = np.zeros(num_records, np.int32)
    # Input tokens so far. A prompt that a row shares counts once.
    self.num_tokens = 0
    self.skipped = 0  # updates that were left out, see train_step

  def add(self, records: np.ndarray, num_tokens: int) -> None:
    """Counts the records of a batch; -1 = empty place."""
    # `counts[records] += 1` would count a record once that is there twice.
    np.add.at(self.counts, records[records >= 0], 1)
    self.num_tokens += num_tokens

  def problems(
    self, indices: np.ndarray, num_prompts: int, same_order: bool = True
  ) -> list[str]:
    """Returns one line per count that does not balance after a run.

    Args:
      indices: the records that belong to training.
      num_prompts: prompts in all updates of the run.
      same_order: whether one order of the records was kept throughout; a fork
        may change it.
    """
    counts = self.counts[indices]
    problems = []
    if counts.sum() != num_prompts:
      problems.append(
        f'{counts.sum()} prompts trained on, {num_prompts} planned'
      )
    if counts.sum() != self.counts.sum():
      problems.append('records outside the training part were trained on')
    # Each epoch takes every record once, and the last epoch may be partial.
    if same_order and counts.max() - counts.min() > 1:
      problems.append(
        f'a record was trained on {counts.max()} times, another {counts.min()}'
      )
    return problems


def close_ledger(
  ledger: Mapping[str, Any], trained: TrainedCounts, indices: np.ndarray
) -> tuple[dict[str, Any], list[str]]:
  """Completes the ledger of the training data, and checks that it balances.

  rows read = trained on + not reached + held out + surplus + duplicates +
  dropped, by reason.

  Args:
    ledger: of encoding, with held_out and surplus if the data was split.
    trained: counts of the run.
    indices: the records that belong to training.

  Returns:
    (ledger, problems); problems is empty if it balances.
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
  """Returns the closed ledger as one line of text."""
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


def result(facts: dict[str, Any]) -> str:
  """The step and the held-out metrics of a run, in one line."""
  shown = ('loss', 'rewards/accuracies', 'rewards/margins')
  metrics = facts.get('eval', {})
  parts = [f'{k} {metrics[k]:.4f}' for k in shown if k in metrics]
  return f'step {facts.get("step")}, held-out {", ".join(parts)}'
