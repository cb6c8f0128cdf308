"""What a plan of batches may be asked for; also read by config, without jax.

Comes in: sizes that a user chose. Goes out: nothing, or InputError naming the
config key and the sizes that are possible. Plans nothing.
"""

import math

from dpo_jax import errors


def check_row_length(longest: int, row_length: int, what: str = '') -> None:
  """Refuses rows too short for the longest prompt + one completion.

  Args:
    longest: its slots.
    row_length: slots of a row.
    what: the name of what is that long, for the message.
  """
  if longest > row_length:
    what = what or f'a prompt and one completion of {longest}'
    raise errors.refuse(
      'config.data.row_length',
      f'{row_length} slots cannot hold {what}',
      f'use 0 (= data.max_length) or at least {longest}, or a data.max_length '
      f'of at most {row_length}',
    )


def check_microbatches(batch_size: int, microbatches: int) -> None:
  """Refuses microbatches that would not hold equally many prompts."""
  if microbatches < 1 or batch_size % microbatches:
    up_to_root = range(1, math.isqrt(batch_size) + 1)
    small = [n for n in up_to_root if batch_size % n == 0]
    divisors = sorted({*small, *(batch_size // n for n in small)})
    raise errors.refuse(
      'config.train.microbatches',
      f'{microbatches} do not divide train.batch_size={batch_size}',
      f'use one of {", ".join(map(str, divisors))}',
    )


def check_sizes(
  num_records: int,
  batch_size: int,
  microbatches: int,
  max_shapes: int,
  *,
  one_pass: bool,
) -> None:
  """Refuses sizes that cannot be planned; a single pass may be short."""
  if num_records < 1:
    raise errors.refuse(
      'config.data.max_length',
      'no record is left to train or evaluate on',
      'see the counts of dropped records, raise it or change the data',
    )
  if batch_size < 1:
    raise errors.refuse('config.train.batch_size', f'{batch_size}', '1 or more')
  check_microbatches(batch_size, microbatches)
  if not one_pass and num_records < batch_size:
    raise errors.refuse(
      'config.train.batch_size',
      f'{batch_size} prompts, but the data has only {num_records}',
      f'at most {num_records}, or more data',
    )
  if max_shapes < 1:
    raise errors.refuse('config.data.max_shapes', f'{max_shapes}', '1 or more')
