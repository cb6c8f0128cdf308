"""lengths -> indices: the records held out, chosen by the hash of the prompt.

Comes in: a `LengthTable`. Goes out: indices for training and for evaluation.
All records of a prompt are on one side, and the order of the file does not
matter. Uses no random numbers and reads no tokens.
"""

import numpy as np

from dpo_jax import errors
from dpo_jax.data.batches.length_table import LengthTable


def split_by_prompt_hash(
  table: LengthTable, num_eval_comparisons: int
) -> tuple[np.ndarray, np.ndarray, int]:
  """Holds out complete prompts until they have a given number of comparisons.

  Prompts are taken in the order of sha256(prompt tokens), the records of one
  prompt in the order of their uids. A record is held out if its comparisons
  still fit into the number. If some of a prompt's records fit and others do
  not, the others belong to neither side. A prompt of which no record fits
  stays in training. Later prompts are searched until the number is complete.

  Args:
    table: of the records. A record without comparisons (labels, scores)
      counts as one comparison.
    num_eval_comparisons: comparisons to hold out; 0 = none.

  Returns:
    Indices to train on [N], ascending; indices to evaluate on [M], ascending;
    the number of surplus comparisons, which belong to neither.

  Raises:
    InputError: the data has fewer comparisons, or no set of complete records
      has exactly this number.
  """
  sizes = np.maximum(table.num_comparisons, 1).tolist()
  total = sum(sizes)
  if not 0 <= num_eval_comparisons < max(1, total):
    raise errors.refuse(
      'config.data.eval_pairs',
      f'{num_eval_comparisons} of {total} comparisons cannot be held out',
      'hold out fewer than there are',
    )
  prompts: dict[bytes, list[int]] = {}
  for i, key in enumerate(table.prompts.tolist()):
    prompts.setdefault(key, []).append(i)
  held, surplus, left = [], [], num_eval_comparisons
  for key in sorted(prompts):
    if not left:
      break
    # Records that still fit are held out; `left` shrinks on the way.
    fitting, rest = [], []
    for i in sorted(prompts[key], key=lambda i: (table.uids[i], i)):
      (fitting if sizes[i] <= left else rest).append(i)
      left -= sizes[i] if sizes[i] <= left else 0
    held += fitting
    # In training, they would show a prompt that is held out.
    surplus += rest if fitting else ()
  if left:
    raise errors.refuse(
      'config.data.eval_pairs',
      f'no whole records make {num_eval_comparisons} comparisons',
      f'hold out {num_eval_comparisons - left}',
    )
  out = {*held, *surplus}
  train = [i for i in range(len(sizes)) if i not in out]
  return (
    np.asarray(train, np.int64),
    np.asarray(sorted(held), np.int64),
    sum(sizes[i] for i in surplus),
  )


def first(table: LengthTable, max_comparisons: int) -> np.ndarray:
  """Returns the first records with `max_comparisons` in total; 0 = all.

  A record without comparisons counts as one, as in the split.
  """
  if not max_comparisons:
    return np.arange(len(table.prompt_lengths))
  counts = np.cumsum(np.maximum(table.num_comparisons, 1))
  return np.arange(max(1, int((counts <= max_comparisons).sum())))
