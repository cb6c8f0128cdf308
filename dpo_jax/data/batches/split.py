"""Which records are held out: by the hash of the prompt, never by chance.

Comes in: a `LengthTable`. Goes out: indices for training and evaluation. A
prompt is on one side only; the order of the file does not matter. Reads no
tokens.
"""

import numpy as np

from dpo_jax import errors
from dpo_jax.data.batches.length_table import LengthTable


def split_by_prompt_hash(
  table: LengthTable, num_eval_comparisons: int
) -> tuple[np.ndarray, np.ndarray, int]:
  """Holds out whole prompts until their comparisons are a given number.

  Prompts are taken in the order of sha256(prompt tokens), the records of one
  prompt in the order of their uids. A record is held out if its comparisons
  still fit. Once a prompt is reached whose comparisons do not all fit, what
  does not fit of it belongs to neither side. If the number is not complete by
  then, the prompts after it are looked through for records that complete it,
  and prompts without one stay in training.

  Args:
    table: of the records; one without comparisons (labels, scores) counts as
      one comparison.
    num_eval_comparisons: how many to hold out; 0 for none.

  Returns:
    Indices to train on [N], ascending; indices to evaluate on [M], ascending;
    the number of surplus comparisons, which belong to neither.

  Raises:
    InputError: there are not that many, or no whole records make that number.
  """
  sizes = np.maximum(table.num_comparisons, 1).tolist()
  total = sum(sizes)
  if not 0 <= num_eval_comparisons < max(1, total):
    raise errors.refuse(
      'data.eval_pairs',
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
    fitting, rest = [], []
    for i in sorted(prompts[key], key=lambda i: (table.uids[i], i)):
      (fitting if sizes[i] <= left else rest).append(i)
      left -= sizes[i] if sizes[i] <= left else 0
    held += fitting
    surplus += rest if fitting else ()
  if left:
    raise errors.refuse(
      'data.eval_pairs',
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
