"""config -> everything of a run that is read: tokens, split, model's shape.

Comes in: a validated config. Goes out: Inputs. Touches no device, so that bad
input is refused first; writes nothing but the token cache, once it is whole.
"""

import functools
import hashlib
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from dpo_jax import config as config_lib
from dpo_jax import errors
from dpo_jax.data.batches import length_table, mismatch, split
from dpo_jax.data.sources import conversations, files, mixture, synthetic
from dpo_jax.data.sources import source as sources
from dpo_jax.data.text import encode
from dpo_jax.data.text import tokenizer as tokenizer_lib
from dpo_jax.data.text.encoders import Tokenizer
from dpo_jax.losses import catalogue as config_losses
from dpo_jax.losses import rules as loss_rules
from dpo_jax.models import adapter_spec, architectures, presets
from dpo_jax.run import encode_options
from dpo_jax.storage import initial_weights, peft_checkpoint, token_store
from dpo_jax.types import Comparison, InputError, PreferenceRecord

# The embedded data sets: no file, no download.
SYNTHETIC = {
  'synthetic': synthetic.make_records,
  'synthetic_demonstrations': synthetic.make_demonstrations,
}
_NUM_SYNTHETIC = 4096  # prompts


class Part(NamedTuple):
  """Records of one use: training or evaluation."""

  store: token_store.TokenStore
  indices: np.ndarray  # int64, the records of the store that belong here


class Inputs(NamedTuple):
  """What a run reads."""

  tokenizer: Tokenizer
  train: Part
  evaluation: Part
  ledger: dict[str, dict[str, Any]]  # where each row of the sources went
  model: architectures.DecoderConfig
  adapter: adapter_spec.AdapterSpec | None  # None = all weights are trained
  weights: str  # Hugging Face folder or run of the policy; '' = random
  fingerprints: dict[str, Any]  # of tokenizer and data, for env.json


def read(
  config,
  cache_dir: pathlib.Path,
  log: Callable[[str], None] = print,
  poll: Callable[[], None] = lambda: None,
) -> Inputs:
  """Reads and checks everything that the config names.

  Args:
    config: validated ConfigDict.
    cache_dir: folder of the token cache; encoding happens once a content.
    log: takes one line of text.
    poll: raises to stop.

  Raises:
    InputError: the first thing that cannot be used.
  """
  tokenizer = tokenizer_lib.load(
    config.tokenizer or initial_weights.tokenizer_of(config.model.init_from)
  )
  model = _read_model(config, tokenizer)
  adapter = _read_adapter(config, model)
  cache = pathlib.Path(config.data.cache_dir or cache_dir)
  encode_part = functools.partial(
    _encode, config, tokenizer, cache, log=log, poll=poll
  )
  names = config_lib.source_names(config.data.train)
  train = encode_part('train', names, config_lib.proportions(config))
  ledger = {'train': dict(train.ledger)}
  if config.data.eval == 'split':
    evaluation = train
    indices = _split(config, train, ledger['train'], log)
  else:
    names = config_lib.source_names(config.data.eval)
    evaluation = encode_part('eval', names, (1.0,) * len(names))
    ledger['eval'] = dict(evaluation.ledger)
    limit = config.eval.max_comparisons
    indices = np.arange(len(train.records)), _first(evaluation.table, limit)
  log(f'prompts: {len(indices[0])} to train on, {len(indices[1])} held out')
  _check_losses(config, {'train': train, 'eval': evaluation}, indices)
  # All is known to be good: only now is anything written.
  store = train.store()
  eval_store = store if evaluation is train else evaluation.store()
  return Inputs(
    tokenizer,
    Part(store, indices[0]),
    Part(eval_store, indices[1]),
    ledger=ledger,
    model=model,
    adapter=adapter,
    weights=config.model.init_from,
    fingerprints={
      'tokenizer': tokenizer.fingerprint,
      'data': store.digest,
      'eval_data': eval_store.digest,
    },
  )


def read_prompts(config, tokenizer: Tokenizer) -> list[np.ndarray]:
  """Token ids of the prompts of config.sample.prompts, none of them cut.

  A row has `prompt` (text or messages) or `messages`; they are encoded as a
  prompt of training is, up to where the answer begins.
  """
  path = config.sample.prompts
  records = [
    _prompt_record(row, f'{path}:{number}')
    for number, row in files.read_rows(path)
  ]
  options = encode_options.read(config, tokenizer, (1.0,))
  options = options._replace(
    max_length=2**30,
    prompt_max_length=None,
    stage='sft',
    train_on='last',
    drop_duplicates=False,
    strict=True,
  )
  encoded, _ = encode.encode_all(records, tokenizer, options)
  if not encoded:
    raise errors.refuse(path, 'has no rows', 'give a prompt a line')
  return [record.prompt for record in encoded]


def _prompt_record(row: dict[str, Any], where: str) -> PreferenceRecord:
  """A prompt with an answer that only stands where the answer begins."""
  key = 'prompt' if 'prompt' in row else 'messages'
  if key not in row:
    raise errors.refuse(
      where, "has neither 'prompt' nor 'messages'", 'give one of them'
    )
  if isinstance(row[key], str):
    prompt, answer = row[key], 'x'
  else:
    prompt = conversations.messages(row[key], key, where)
    answer = ({'role': 'assistant', 'content': 'x'},)
  one = (Comparison(0, 0),)
  record = PreferenceRecord(prompt, (answer,), one, where=where)
  if row.get('tools') is None or isinstance(prompt, str):
    return record
  return record._replace(tools=conversations.tools(row['tools'], where))


def _read_model(config, tokenizer: Tokenizer) -> architectures.DecoderConfig:
  """The model's shape, which must have a row for every token."""
  if config.model.init_from:
    model = initial_weights.read_config(config.model.init_from)
    initial_weights.check(config.model.init_from, model)
  else:
    size = config.model.vocab_size or tokenizer.vocab_size
    model = presets.get(config.model.preset, vocab_size=size)
  if tokenizer.vocab_size > model.vocab_size:
    raise InputError(
      f'config.tokenizer: {tokenizer.name!r} has {tokenizer.vocab_size} '
      f'tokens, the model {model.vocab_size}; fix: use the tokenizer that the '
      'model was trained with'
      + ('' if config.model.init_from else ', or a larger model.vocab_size')
    )
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
  config, model: architectures.DecoderConfig
) -> adapter_spec.AdapterSpec | None:
  """The adapter to train, on linear maps that this model has."""
  adapter = config.adapter
  if not adapter.rank:
    return None
  spec = adapter_spec.AdapterSpec(
    rank=adapter.rank,
    alpha=adapter.alpha,
    targets=adapter_spec.select(adapter.targets, adapter_spec.linears(model)),
    rslora=adapter.rslora,
    zero=adapter.init.removesuffix('_zero'),
  )
  if adapter.init_from:
    peft_checkpoint.check(adapter.init_from, model, spec)
  return spec


class _Encoded(NamedTuple):
  """Encoded records, in memory or from the token cache."""

  records: Any  # list of EncodedRecord, or a TokenStore
  table: length_table.LengthTable  # of the records
  ledger: dict[str, Any]
  folder: pathlib.Path  # where the store is, or will be
  sources: list[str]  # names

  def store(self) -> token_store.TokenStore:
    """The records as a store; writes it if it is not there."""
    if isinstance(self.records, token_store.TokenStore):
      return self.records
    meta = {'ledger': self.ledger, 'sources': self.sources}
    return token_store.write(self.folder, self.records, meta)


def _encode(
  config, tokenizer, cache, use, names, shares, *, log, poll
) -> _Encoded:
  """The records of the sources, encoded now if they are not in the cache."""
  opened = [_open_source(config, name, log) for name in names]
  options = encode_options.read(config, tokenizer, shares)
  choice = [list(shares), config.seed if any(s % 1 for s in shares) else 0]
  key = token_store.key(
    [source.fingerprint for source in opened],
    tokenizer.fingerprint,
    options.chat_template,
    options._asdict()
    | {'formats': [s.row_format for s in opened], 'choice': choice},
  )
  folder = cache / 'tokens' / key
  if folder.exists():
    store = token_store.open_store(folder)
    log(f'{use}: {len(store)} records from the token cache {folder}')
    done = store, store.table, store.meta['ledger']
    encode_options.log_unused(use, options, done[-1], log)
    return _Encoded(*done, folder, list(names))
  records = mixture.mix(opened, shares, config.seed)
  encoded, ledger = encode.encode_all(
    _polled(records, poll), tokenizer, options
  )
  for line in ledger.lines():
    log(f'{use}: {line}')
  if not encoded:
    raise errors.refuse(
      f'config.data.{use}',
      f'no record of {", ".join(names)} is left after encoding',
      'see the reasons above, e.g. a larger data.max_length',
    )
  done = encoded, length_table.make_table(encoded), ledger.as_dict()
  encode_options.log_unused(use, options, done[-1], log)
  return _Encoded(*done, folder, list(names))


def _open_source(config, name: str, log) -> sources.Source:
  if name in SYNTHETIC:
    make, seed = SYNTHETIC[name], 0
    text = f'{name} {_NUM_SYNTHETIC} {seed} {synthetic.VERSION}'
    return sources.Source(
      name,
      hashlib.sha256(text.encode()).hexdigest(),
      'synthetic',
      lambda: iter(make(_NUM_SYNTHETIC, seed)),
    )
  source = sources.open_source(
    name,
    row_format=config.data.row_format,
    use_token_ids=config.data.use_token_ids,
    manual_dir=config.data.manual_dir or None,
  )
  if config.data.use_token_ids and source.row_format != 'token_ids':
    log(f'{name}: no *_ids columns, so its text is tokenised')
  return source


def _split(
  config, train: _Encoded, ledger: dict[str, Any], log
) -> tuple[np.ndarray, np.ndarray]:
  """Training and held-out records of one source; completes its ledger."""
  kept, held_out, surplus = split.split_by_prompt_hash(
    train.table, config.data.eval_pairs
  )
  num_records = len(train.records)
  if surplus:
    log(f'held out: {surplus} comparisons of its last prompt go unused')
  if not len(kept):
    raise errors.refuse(
      'config.data.eval_pairs',
      f'{config.data.eval_pairs} leaves nothing to train on, of {num_records} '
      'records',
      'a smaller number',
    )
  ledger['held_out'] = len(held_out)
  ledger['surplus'] = num_records - len(kept) - len(held_out)
  return kept, held_out


def _first(table: length_table.LengthTable, max_comparisons: int):
  """Indices of the first records with so many comparisons; 0 = all.

  A record without comparisons counts as one, as where data is split.
  """
  if not max_comparisons:
    return np.arange(len(table.prompt_lengths))
  counts = np.cumsum(np.maximum(table.num_comparisons, 1))
  return np.arange(max(1, int((counts <= max_comparisons).sum())))


def _check_losses(config, parts: dict[str, _Encoded], indices) -> None:
  """Refuses data that a chosen loss cannot be computed from."""
  known = config_losses.read()
  chosen = {name: known[name] for name in config_lib.loss_terms(config)}
  if any('mismatched' in loss.needs for loss in chosen.values()):
    size = config.train.batch_size
    mismatch.check(parts['train'].table, indices[0], size)
  for (use, part), mine in zip(parts.items(), indices):
    columns = length_table.columns(part.table, mine)
    loss_rules.check_data(chosen, columns, f'config.data.{use}')


def _polled(
  records: Iterable[PreferenceRecord], poll: Callable[[], None]
) -> Iterator[PreferenceRecord]:
  for record in records:
    poll()
    yield record
