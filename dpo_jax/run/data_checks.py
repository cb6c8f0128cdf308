"""records -> what is wrong with them for this config, and their counts.

Comes in: the encoded records of training and evaluation. Goes out: lines about
them, counts for the ledger, and the table with label noise. Refuses data that
lacks what a chosen loss needs. Reads tokens only where two sets share prompts.
"""

from collections.abc import Callable, Collection

import numpy as np
from ml_collections.config_dict import ConfigDict

from dpo_jax import config as config_lib
from dpo_jax.data.batches import (
  evidence,
  label_noise,
  length_table,
  mismatch,
  overlap,
)
from dpo_jax.data.batches.length_table import LengthTable
from dpo_jax.losses import catalogue
from dpo_jax.losses import rules as loss_rules
from dpo_jax.storage import token_store

_USES = {'train': 'to train on', 'eval': 'held out'}


def check(
  config: ConfigDict,
  parts: Collection[str],
  stores: dict[str, token_store.TokenStore],
  indices: dict[str, np.ndarray],
  ledger: dict[str, dict],
  log: Callable[[str], None],
  check_part: Callable[[str, LengthTable, np.ndarray], None] | None = None,
) -> LengthTable | None:
  """Checks the records, adds their counts to the ledger.

  Args:
    config: validated.
    parts: those that are wanted, of 'train' and 'eval'.
    stores: the records of each part that was read.
    indices: of each part: int64, its records.
    ledger: of each part that has one; is completed.
    log: takes one line of text.
    check_part: as `check` of datasets.read.

  Returns:
    The table to train on, with its label noise; None without training data.

  Raises:
    InputError: the data lacks what a chosen loss needs.
  """
  if len(stores) == 2 and config.data.eval != 'split':
    overlap_counts, lines = overlap.report(
      *(overlap.Chosen(s, s.table, indices[u]) for u, s in stores.items())
    )
    ledger['eval'] |= overlap_counts
    for line in lines:
      log(line)
  counts = {use: len(indices[use]) for use in stores}
  log('prompts: ' + ', '.join(f'{n} {_USES[u]}' for u, n in counts.items()))
  ordered = _check_losses(config, stores, indices)
  noisy = None
  if 'train' in parts:
    noisy, flips, lines = label_noise.flip(
      stores['train'].table,
      indices['train'],
      config.data.flip_share,
      config.data.flip_seed,
    )
    ledger['train'] |= flips
    for line in lines:
      log(f'train: {line}')
  for use, store in stores.items():
    counts, lines = evidence.report(store.table, indices[use], ordered)
    for line in lines:
      log(f'{use}: {line}')
    # Held-out records of the training data have no ledger of their own.
    if use in ledger:
      ledger[use] |= counts
    if check_part:
      check_part(use, store.table, indices[use])
  return noisy


def _check_losses(
  config,
  stores: dict[str, token_store.TokenStore],
  indices: dict[str, np.ndarray],
) -> list[str]:
  """Refuses data that lacks what a chosen loss needs.

  Returns:
    The chosen losses that need the higher score on the chosen answer.
  """
  known = catalogue.read()
  chosen = {name: known[name] for name in config_lib.loss_terms(config)}
  is_mismatched = any('mismatched' in loss.needs for loss in chosen.values())
  if is_mismatched and 'train' in stores:
    size = config.train.batch_size
    mismatch.check(stores['train'].table, indices['train'], size)
  if 'train' in stores:
    evidence.check(stores['train'].table, indices['train'])
  for use, store in stores.items():
    columns = length_table.columns(store.table, indices[use])
    loss_rules.check_data(chosen, columns, f'config.data.{use}')
  return [k for k, loss in chosen.items() if 'score_order' in loss.needs]
