"""lengths -> weights: each prompt counted once, whatever its comparisons.

Comes in: a `LengthTable` and the records that are used. Goes out: weights in
place of those of the data. Reads no tokens.

K answers with scores give up to K (K - 1) / 2 comparisons, and rows of pairs
may repeat a prompt, so a mean over comparisons gives such a prompt more weight.
Divided by their number, as by K choose 2 in InstructGPT (Ouyang et al. 2022,
arXiv:2203.02155, eq. 1), the comparisons of every prompt weigh together what
one comparison weighs.
"""

import numpy as np

from dpo_jax import errors
from dpo_jax.data.batches import length_table
from dpo_jax.data.batches.length_table import LengthTable


def of_lists(table: LengthTable) -> np.ndarray:
  """Returns the data's weight of each record's list of completions.

  Args:
    table: of the store.

  Returns:
    float64 [N], the mean weight of the record's comparisons; 1 without any.
  """
  starts, ends = table.comparison_offsets[:-1], table.comparison_offsets[1:]
  sums = np.concatenate([[0.0], np.cumsum(table.weight)])
  means = (sums[ends] - sums[starts]) / np.maximum(ends - starts, 1)
  return np.where(ends > starts, means, 1.0)


def by_prompt(
  table: LengthTable, indices: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Returns weights that sum to one comparison's, or one list's, per prompt.

  A record that is repeated, as by data.proportions, counts again: its copies
  do not divide each other's weights.

  Args:
    table: of the store.
    indices: int [n], the records that are used.

  Returns:
    (float64, flat over comparisons: the data's weight divided by the number of
    comparisons of the prompt; float64 [N]: that of each list divided by the
    number of lists of the prompt). Those of weight 0 are not counted.

  Raises:
    InputError: no record has a comparison.
  """
  used, _, compared = length_table.masks(table, indices)
  if not compared.any():
    raise errors.refuse(
      'config.data.weigh_prompts',
      'True weighs comparisons, and the data has none',
      'leave it False, or use pairs or scored answers',
    )
  lists = of_lists(table)
  records = np.arange(len(used))
  # The first of equal records, by uid; without uids all records differ.
  keys = np.where(table.uids == b'', records.astype('S16'), table.uids)
  first = np.zeros(len(used), bool)
  chosen = np.flatnonzero(used)
  first[chosen[np.unique(keys[chosen], return_index=True)[1]]] = True
  _, prompts = np.unique(table.prompts, return_inverse=True)
  owners = np.repeat(records, table.num_comparisons)
  counts = compared & first[owners] & (table.weight > 0)
  num_compared = np.bincount(prompts[owners[counts]], minlength=len(used))
  num_lists = np.bincount(prompts[first & (lists > 0)], minlength=len(used))
  return (
    table.weight / np.maximum(num_compared[prompts[owners]], 1),
    lists / np.maximum(num_lists[prompts], 1),
  )
