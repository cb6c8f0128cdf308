"""config -> the inputs of a run: tokenizer, records, split, model shape.

Comes in: a validated config. Goes out: Inputs. Touches no device, so that bad
input is refused first. Writes nothing but the token cache, and that only after
all data was checked.
"""

import dataclasses
import functools
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

from ml_collections.config_dict import ConfigDict

from dpo_jax import errors
from dpo_jax.data.text import tokenizer as tokenizer_lib
from dpo_jax.data.text.encoders import Tokenizer
from dpo_jax.models import adapter_spec, presets
from dpo_jax.models.adapter_spec import AdapterSpec
from dpo_jax.models.decoder_config import DecoderConfig
from dpo_jax.run import datasets, identity, positions
from dpo_jax.run.datasets import Part
from dpo_jax.storage import files, initial_weights, peft_checkpoint


class Inputs(NamedTuple):
  """The inputs of a run; no weights yet."""

  tokenizer: Tokenizer
  train: Part | None  # None = a part that the command does not read
  evaluation: Part | None
  ledger: dict[str, dict[str, Any]]  # {'train' or 'eval': counts of rows}
  model: DecoderConfig
  adapter: AdapterSpec | None  # None = all weights are trained
  weights: str  # Hugging Face folder or run to start from; '' = random
  fingerprints: dict[str, Any]  # of tokenizer and data, for env.json


def read(
  config: ConfigDict,
  cache_dir: files.AnyPath,
  log: Callable[[str], None] = print,
  poll: Callable[[], None] = lambda: None,
  parts: Collection[str] = ('train', 'eval'),
) -> Inputs:
  """Reads and checks everything that the config names.

  Args:
    config: validated.
    cache_dir: folder of the caches; the same content is encoded once.
    log: takes one line of text.
    poll: raises to stop.
    parts: those of the data that are wanted, of 'train' and 'eval'.

  Raises:
    InputError: the first input that cannot be used.
  """
  tokenizer = tokenizer_lib.load(
    config.tokenizer or initial_weights.tokenizer_of(config.model.init_from)
  )
  # Cheap checks first: reading the data may take minutes.
  model = _read_model(config, tokenizer)
  adapter = _read_adapter(config, model)
  data = datasets.read(
    config,
    tokenizer,
    cache_dir,
    log,
    poll,
    parts,
    functools.partial(positions.check_data, config, model, log),
  )
  return Inputs(
    tokenizer,
    data.train,
    data.evaluation,
    ledger=data.ledger,
    model=model,
    adapter=adapter,
    weights=config.model.init_from,
    # A continued run compares these: it must see the same tokens.
    fingerprints={
      'tokenizer': tokenizer.fingerprint,
      'template': identity.of_template(config, tokenizer),
      **_digests(data),
    },
  )


def _digests(data: datasets.Data) -> dict[str, str]:
  """The digests of the parts that were read: of tokens, and of the rest."""
  digests = {}
  for start, part in (('', data.train), ('eval_', data.evaluation)):
    if part:
      digests[f'{start}data'] = part.store.digest
      digests[f'{start}judgements'] = part.store.judgements
  return digests


def _read_model(config: ConfigDict, tokenizer: Tokenizer) -> DecoderConfig:
  """The model's shape; refuses a vocabulary that does not fit the tokenizer."""
  if config.model.init_from:
    model = initial_weights.read_config(config.model.init_from)
    initial_weights.check(config.model.init_from, model)
    if config.model.add_rows:
      size = max(model.vocab_size, tokenizer.vocab_size)
      model = dataclasses.replace(model, vocab_size=size)
  else:
    size = config.model.vocab_size or tokenizer.vocab_size
    model = presets.get(config.model.preset, vocab_size=size)
  if tokenizer.vocab_size > model.vocab_size:
    larger = (
      'set model.add_rows=True: a new token gets the mean of the table'
      if config.model.init_from
      else 'a larger model.vocab_size'
    )
    raise errors.refuse(
      'config.tokenizer',
      f'{tokenizer.name!r} has {tokenizer.vocab_size} tokens, the model '
      f'{model.vocab_size}',
      f'use the tokenizer that the model was trained with, or {larger}',
    )
  # Rows beyond the tokenizer are padding in some models and in others a sign
  # of the wrong tokenizer: only the user can tell.
  padded = config.model.init_from and tokenizer.vocab_size < model.vocab_size
  if padded and not config.model.allow_larger_vocab:
    raise errors.refuse(
      'config.tokenizer',
      f'{tokenizer.name!r} has {tokenizer.vocab_size} tokens, the model '
      f'{model.vocab_size}',
      'use the tokenizer that the model was trained with, or set '
      'model.allow_larger_vocab=True if the other rows are padding (as in '
      'pythia and qwen)',
    )
  coefficient = config.model.router_aux_coef
  if coefficient is not None and not model.num_experts:
    raise errors.refuse(
      'config.model.router_aux_coef',
      f'{coefficient:g} is not used, a {model.family} has no experts',
      'set it to None',
    )
  return model


def _read_adapter(
  config: ConfigDict, model: DecoderConfig
) -> AdapterSpec | None:
  """The adapter to train; refuses targets that the model does not have."""
  adapter = config.adapter
  if not adapter.rank:
    return None
  spec = adapter_spec.from_choices(adapter, model)
  if adapter.init_from:
    peft_checkpoint.check(adapter.init_from, model, spec)
  return spec
