"""config -> everything of a run that is read: tokens, split, model's shape.

Comes in: a validated config. Goes out: Inputs. Touches no device, so that bad
input is refused first; writes nothing but the token cache, once it is whole.
"""

import hashlib
import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from dpo_jax import config as config_lib
from dpo_jax.data import encode, mixture, sources, split, synthetic
from dpo_jax.data import tokenizer as tokenizer_lib
from dpo_jax.data.encoders import Tokenizer
from dpo_jax.models import architectures, presets
from dpo_jax.storage import initial_weights, token_store
from dpo_jax.types import EncodedRecord, InputError, PreferenceRecord

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
  names = config_lib.source_names(config.data.train)
  shares = config_lib.proportions(config)
  cache = pathlib.Path(config.data.cache_dir or cache_dir)

  def encoded(names, shares, use):
    return _encoded(config, tokenizer, names, shares, cache, use, log, poll)

  store = encoded(names, shares, 'train')
  ledger = {'train': dict(store.meta['ledger'])}
  if config.data.eval == 'split':
    train, held_out, surplus = _split(config, store)
    ledger['train'] |= {'held_out': len(held_out)}
    ledger['train'] |= {'surplus': len(store) - len(train) - len(held_out)}
    if surplus:
      log(f'held out: {surplus} comparisons of its last prompt go unused')
    parts = Part(store, train), Part(store, held_out)
  else:
    eval_names = config_lib.source_names(config.data.eval)
    eval_store = encoded(eval_names, (1.0,) * len(eval_names), 'eval')
    ledger['eval'] = dict(eval_store.meta['ledger'])
    whole = _limited(eval_store, config.eval.max_comparisons)
    parts = Part(store, np.arange(len(store))), Part(eval_store, whole)
  log(
    f'prompts: {len(parts[0].indices)} to train on, '
    f'{len(parts[1].indices)} held out'
  )
  return Inputs(
    tokenizer,
    *parts,
    ledger=ledger,
    model=model,
    weights=config.model.init_from,
    fingerprints={
      'tokenizer': tokenizer.fingerprint,
      'data': store.digest,
      'eval_data': parts[1].store.digest,
    },
  )


def _read_model(config, tokenizer: Tokenizer) -> architectures.DecoderConfig:
  """The model's shape, which must have a row for every token."""
  if config.model.init_from:
    model = initial_weights.read_config(config.model.init_from)
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
  return model


def _encoded(
  config, tokenizer, names, shares, cache, use, log, poll
) -> token_store.TokenStore:
  """The token store of the sources, encoded now if it is not there."""
  opened = [_open_source(config, name) for name in names]
  options, template = _encode_options(config, shares)
  choice = [list(shares), config.seed if any(s % 1 for s in shares) else 0]
  key = token_store.key(
    [source.fingerprint for source in opened],
    tokenizer.fingerprint,
    template,
    options._asdict()
    | {'use_token_ids': config.data.use_token_ids}
    | {'formats': [s.row_format for s in opened], 'choice': choice},
  )
  folder = cache / 'tokens' / key
  if folder.exists():
    store = token_store.open_store(folder)
    log(f'{use}: {len(store)} records from the token cache {folder}')
  else:
    records = mixture.mix(opened, shares, config.seed)
    encoded, ledger = encode.encode_all(
      _polled(records, poll), tokenizer, options
    )
    for line in ledger.lines():
      log(f'{use}: {line}')
    if not encoded:
      raise InputError(
        f'config.data.{use}: no record of {", ".join(names)} is left after '
        'encoding; fix: see the reasons above, e.g. a larger data.max_length'
      )
    meta = {'ledger': ledger.as_dict(), 'sources': [s.name for s in opened]}
    store = token_store.write(folder, encoded, meta)
  return store


def _open_source(config, name: str) -> sources.Source:
  if name in SYNTHETIC:
    make, seed = SYNTHETIC[name], 0
    text = f'{name} {_NUM_SYNTHETIC} {seed} {synthetic.VERSION}'
    return sources.Source(
      name,
      hashlib.sha256(text.encode()).hexdigest(),
      'synthetic',
      lambda: iter(make(_NUM_SYNTHETIC, seed)),
    )
  return sources.open_source(
    name,
    row_format=config.data.row_format,
    use_token_ids=config.data.use_token_ids,
    manual_dir=config.data.manual_dir or None,
  )


def _encode_options(config, shares):
  """EncodeOptions, and the template's source where the config names one."""
  data = config.data
  template = None
  if data.chat_template:
    template = pathlib.Path(data.chat_template).read_text(encoding='utf-8')
  options = encode.EncodeOptions(
    max_length=data.max_length,
    truncation=data.truncation,
    prompt_max_length=data.prompt_max_length or None,
    stage=config.stage,
    add_eos=data.add_eos,
    use_chat_template=bool(template),
    chat_template=template,
    allow_control_tokens=data.allow_control_tokens,
    # A source taken more than once is meant to repeat its records.
    drop_duplicates=data.drop_duplicates and max(shares) <= 1,
    strict=data.strict,
  )
  return options, template


def _split(config, store) -> tuple[np.ndarray, np.ndarray, int]:
  """Training and held-out records of one store, by the hash of the prompt."""
  records: list[EncodedRecord] = [store[i] for i in range(len(store))]
  return split.split_by_prompt_hash(records, config.data.eval_pairs)


def _limited(store, max_comparisons: int) -> np.ndarray:
  """The first records that have no more comparisons than asked for; 0 = all."""
  everything = np.arange(len(store))
  if not max_comparisons:
    return everything
  return everything[np.cumsum(store.table.num_comparisons) <= max_comparisons]


def _polled(
  records: Iterable[PreferenceRecord], poll: Callable[[], None]
) -> Iterator[PreferenceRecord]:
  for record in records:
    poll()
    yield record
