"""lengths -> counts: judgements from which a loss can learn nothing.

Comes in: a `LengthTable` and the records of training or of evaluation. Goes
out: counts for the ledger, a line of text per finding, or a refusal. Changes no
judgement.
"""

from collections.abc import Sequence

import numpy as np

from dpo_jax import errors
from dpo_jax.data.batches import length_table
from dpo_jax.data.batches.length_table import LengthTable

# Counts of `report`, each with the thing that is counted.
COUNTS = {
  'zero_weights': 'comparisons of weight 0, which count for nothing',
  'tied_scores': 'comparisons of equal scores, without gradient in a loss that '
  'needs the higher one on the chosen answer',
  'reversed_scores': 'comparisons with the higher score on the rejected '
  'answer, also without gradient there',
}


def check(table: LengthTable, indices: np.ndarray) -> None:
  """Refuses training data in which every comparison has weight 0.

  Args:
    table: of the store.
    indices: int [N], the records to train on.
  """
  _, completions, comparisons = length_table.masks(table, indices)
  weights, labels = table.weight[comparisons], table.labels[completions]
  if len(weights) and not weights.any() and not (labels >= 0).any():
    raise errors.refuse(
      'config.data.train',
      f"'weight' is 0 in all {len(weights)} comparisons, so no loss learns",
      'give weights above 0, or leave the column out with data.columns=-weight',
    )


def report(
  table: LengthTable, indices: np.ndarray, ordered: Sequence[str] = ()
) -> tuple[dict[str, int], list[str]]:
  """Returns the COUNTS that these records have, and a line per finding.

  Args:
    table: of the store.
    indices: int [N], the records that are used.
    ordered: names of the chosen losses that need the higher score on the
      chosen answer.
  """
  _, completions, comparisons = length_table.masks(table, indices)
  compared = np.flatnonzero(comparisons)
  is_zero = table.weight[compared] == 0
  counts, total, losses = {}, len(compared), ', '.join(ordered)
  lines = []
  if is_zero.any():
    counts['zero_weights'] = int(is_zero.sum())
    lines.append(
      f'{counts["zero_weights"]} of {total} comparisons have weight 0'
    )
    if is_zero.all():
      lines[-1] += ': no metric of comparisons can be given'
  if ordered:
    # As float32, in which the loss reads them.
    gaps = _score_gaps(table, compared[~is_zero])
    tied, reversed_ = int((gaps == 0).sum()), int((gaps < 0).sum())
    counts |= {'tied_scores': tied, 'reversed_scores': reversed_}
    lines += [
      f'{count} of {total} comparisons have {what}: {losses} gets no gradient '
      'from them'
      for count, what in (
        (tied, 'answers with equal scores'),
        (reversed_, 'the higher score on the rejected answer'),
      )
      if count
    ]
  labels = table.labels[completions]
  # A comparison that counts has an answer of either kind.
  if is_zero.all():
    lines += _one_label(labels[labels >= 0])
  return counts, lines


def _one_label(labels: np.ndarray) -> list[str]:
  """A line if all labelled completions are desirable, or all undesirable."""
  if len(set(labels.tolist())) != 1:
    return []
  kinds = ('undesirable', 'desirable')
  return [
    f'all {len(labels)} labels are {kinds[labels[0]]}: no metric that reads '
    f'{kinds[1 - labels[0]]} answers can be given'
  ]


def _score_gaps(table: LengthTable, compared: np.ndarray) -> np.ndarray:
  """float32 score of the winner minus that of the loser; NaN without scores."""
  records = np.repeat(np.arange(len(table.uids)), table.num_comparisons)
  first = table.offsets[records[compared]]
  scores = table.scores.astype(np.float32)
  winner, loser = table.winner[compared], table.loser[compared]
  return scores[first + winner] - scores[first + loser]
