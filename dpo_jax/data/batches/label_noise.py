"""lengths -> lengths: comparisons whose winner and loser are swapped.

Comes in: a `LengthTable` and the records to train on. Goes out: the table with
a share of their comparisons swapped, and what to say of it. Reads no tokens;
completions, labels and scores keep their places.

Which comparisons are swapped follows from the record's uid, the comparison's
number in it and a seed alone: the order of the data, the batches and the other
records do not matter. Those of a smaller share are among those of a larger one.
"""

import numpy as np

from dpo_jax import errors
from dpo_jax.data.batches import length_table
from dpo_jax.data.batches.length_table import LengthTable
from dpo_jax.storage import files

# The count of `flip` in the ledger, with what it counts.
COUNTS = {
  'flipped': 'comparisons to train on with winner and loser swapped '
  '(data.flip_share)'
}


def flip(
  table: LengthTable, indices: np.ndarray, share: float, seed: int
) -> tuple[LengthTable, dict[str, int], list[str]]:
  """Swaps winner and loser of a share of comparisons.

  Args:
    table: of the store.
    indices: int [N], the records to train on; all others stay as they are.
    share: probability of a swap, in [0, 1]; 0 returns the table itself.
    seed: of the choice.

  Returns:
    The table, the COUNTS, and the lines for the log. Weights and margins stay:
    a swapped comparison claims as much as before, for the other answer.

  Raises:
    InputError: the records have no comparison.
  """
  if not share:
    return table, {}, []
  _, _, used = length_table.masks(table, indices)
  used = np.flatnonzero(used & (table.winner != table.loser))
  if not len(used):
    raise errors.refuse(
      'config.data.flip_share',
      f'{share:g} swaps the answers of comparisons, and data.train has none',
      "set it to 0, or use data with comparisons and stage 'dpo'",
    )
  owners = np.repeat(np.arange(len(table.uids)), table.num_comparisons)[used]
  places = used - table.comparison_offsets[owners]
  drawn = [
    _uniform(uid, place, seed)
    for uid, place in zip(table.uids[owners].tolist(), places.tolist())
  ]
  chosen = used[np.array(drawn) < share]
  winner, loser = table.winner.copy(), table.loser.copy()
  winner[chosen], loser[chosen] = table.loser[chosen], table.winner[chosen]
  line = (
    f'{len(chosen):,} of {len(used):,} comparisons '
    f'({len(chosen) / len(used):.1%}) have winner and loser swapped: '
    f'data.flip_share is {share:g}'
  )
  flipped = table._replace(winner=winner, loser=loser)
  return flipped, {'flipped': len(chosen)}, [line]


def _uniform(uid: bytes, place: int, seed: int) -> float:
  """A number in [0, 1) of a comparison; the same on every machine."""
  text = f'{uid.decode()} {place} {seed}'
  return int(files.bytes_digest([text.encode()])[:13], 16) / 16**13
