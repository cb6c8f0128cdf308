"""lengths -> nothing, or the refusal of texts that the model has no room for.

Comes in: the model's shape and the lengths of texts. Goes out: InputError where
a position would have no row in the position table, or where sampling would
change the rotation of tokens that are in the cache; a line where texts are
longer than those that a rotary model was trained on. Touches no device.
"""

from collections.abc import Callable, Sequence

import numpy as np
from ml_collections.config_dict import ConfigDict

from dpo_jax import errors
from dpo_jax.data.batches import length_table
from dpo_jax.data.batches.length_table import LengthTable
from dpo_jax.models.decoder_config import DecoderConfig


def check_data(
  config: ConfigDict,
  model: DecoderConfig,
  log: Callable[[str], None],
  use: str,
  table: LengthTable,
  indices: np.ndarray,
) -> None:
  """Checks the texts of a part of the data, and what will be sampled there.

  Args:
    config: its eval.num_samples and sample.max_new_tokens are read.
    model: the model's shape.
    log: takes one line of text.
    use: 'train' or 'eval', the key of config.data.
    table: lengths of the records.
    indices: the records of the part.

  Raises:
    InputError: a text is longer than the position table, or might become so.
  """
  _check_texts(model, use, length_table.text_lengths(table, indices), log)
  if use == 'eval' and config.eval.num_samples:
    first = indices[: config.eval.num_samples]
    check_samples(model, table.prompt_lengths[first], config, log)


def check_samples(
  model: DecoderConfig,
  lengths: Sequence[int],
  config: ConfigDict,
  log: Callable[[str], None] = print,
) -> None:
  """Checks prompts and what sampling may add to them.

  Args:
    model: the model's shape.
    lengths: tokens of the prompts.
    config: its sample.max_new_tokens is read.
    log: takes one line of text.

  Raises:
    InputError: a token would have no position; or the text would pass the
      length above which earlier tokens have another rotation.
  """
  longest, new = max(lengths, default=0), config.sample.max_new_tokens
  words = f'{new} after a prompt of {longest} tokens is more than the '
  if model.learned_positions and longest + new > model.max_positions:
    raise errors.refuse(
      'config.sample.max_new_tokens',
      f'{words}{model.max_positions} positions of the model',
      'use less, or shorter prompts',
    )
  for rope in model.ropes:
    if rope.by_length and longest + new > rope.original_positions:
      raise errors.refuse(
        'config.sample.max_new_tokens',
        f'{words}{rope.original_positions} positions above which '
        f'rope_type={rope.scaling!r} rotates all tokens of a text differently',
        'use less, or shorter prompts',
      )
  if longest + new > model.max_positions:
    log(
      f'samples: {words}{model.max_positions} positions that the model was '
      'trained on (max_position_embeddings)'
    )


def _check_texts(model, use, lengths, log) -> None:
  longer = int((lengths > model.max_positions).sum())
  # 'dynamic' is made for longer texts than its positions.
  if not longer or any(r.scaling == 'dynamic' for r in model.ropes):
    return
  words = f'{longer} of {len(lengths)} texts of data.{use} are longer than '
  longest = f'the longest has {lengths.max()} tokens'
  if not model.learned_positions:
    log(
      f'{words}the {model.max_positions} positions that the model was trained '
      f'on (max_position_embeddings); {longest}'
    )
    return
  raise errors.refuse(
    f'config.data.{use}',
    f"{words}the model's table of {model.max_positions} positions; {longest}",
    f'--config.data.max_length={model.max_positions}, or a model with more '
    'positions',
  )
