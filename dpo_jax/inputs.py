"""record -> text -> tokens: everything of a run that is read, none computed.

Comes in: a validated config. Goes out: Inputs: tokenizer, encoded data and
its split, the model's shape and where its weights lie. Touches no device, so
that bad input is refused first, and writes nothing but the token cache.
"""

import json
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from dpo_jax import config as config_lib
from dpo_jax.data import encode, mixture, sources, split, synthetic
from dpo_jax.data import tokenizer as tokenizer_lib
from dpo_jax.models import architectures, presets
from dpo_jax.storage import hf_checkpoint, run_dir, token_store
from dpo_jax.types import InputError

SYNTHETIC = 'synthetic'  # the embedded data set: no file, no download


class Part(NamedTuple):
  """Records of one use: training or evaluation."""

  store: Any  # TokenStore
  indices: np.ndarray  # int64, the records of the store that belong here
  name: str  # for messages


class Inputs(NamedTuple):
  """What a run reads."""

  tokenizer: Any
  train: Part
  evaluation: Part
  ledger: dict[str, Any]  # where each row of the files went
  model: architectures.DecoderConfig
  weights: str  # Hugging Face folder or run directory; '' = random
  fingerprints: dict[str, Any]  # of data and tokenizer, for env.json


def read(config, cache_dir, log: Callable[[str], None] = print) -> Inputs:
  """Reads and checks everything that the config names.

  Args:
    config: validated ConfigDict.
    cache_dir: folder of the token cache; encoding happens once a content.
    log: takes one line of text at a time.

  Raises:
    InputError: the first thing that cannot be used.
  """
  model_config = _read_model(config)
  tokenizer = _read_tokenizer(config)
  if model_config is None:
    vocab_size = config.model.vocab_size or tokenizer.vocab_size
    model_config = presets.get(config.model.preset, vocab_size=vocab_size)
  _check_vocabulary(config, tokenizer, model_config)
  names = config_lib.source_names(config.data.train)
  held_out = config.data.eval == 'split'
  store = _encoded(config, names, tokenizer, cache_dir, log)
  ledger = {'train': store.meta['ledger']}
  train = np.arange(len(store))
  if held_out:
    train, evaluation = _split(config, store, ledger['train'])
    parts = Part(store, train, 'train'), Part(store, evaluation, 'eval')
  else:
    eval_store = _encoded(
      config, config_lib.source_names(config.data.eval), tokenizer,
      cache_dir, log, use='eval',
    )
    ledger['eval'] = eval_store.meta['ledger']
    everything = np.arange(len(eval_store))
    parts = Part(store, train, 'train'), Part(eval_store, everything, 'eval')
  for part in parts:
    if not len(part.indices):
      raise InputError(
        f'config.data.{part.name}: no record is left for {part.name}; fix: '
        'see the counts of dropped records above'
      )
  return Inputs(
    tokenizer,
    *parts,
    ledger=ledger,
    model=model_config,
    weights=config.model.init_from,
    fingerprints={
      'tokenizer': tokenizer.fingerprint,
      'data': store.digest,
      'eval_data': parts[1].store.digest,
    },
  )
