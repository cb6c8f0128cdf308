"""config -> lengths of its data in tokens, before anything is cut.

Comes in: a config whose data.train and tokenizer are set. Goes out: Lengths of
its records, for an experiment that chooses data.max_length by them. Writes
nothing.
"""

import itertools
from typing import NamedTuple

import numpy as np
from ml_collections.config_dict import ConfigDict

from dpo_jax import config as config_lib
from dpo_jax import errors
from dpo_jax.data.text import encode
from dpo_jax.data.text import tokenizer as tokenizer_lib
from dpo_jax.data.text.ledger import Ledger
from dpo_jax.run import datasets
from dpo_jax.storage import initial_weights
from dpo_jax.types import PreferenceRecord

_UNCUT = 2**30  # tokens


class Lengths(NamedTuple):
  """Tokens of the first records, BOS and EOS included, and counts of all."""

  prompts: np.ndarray  # int64 [N]
  longest: np.ndarray  # int64 [N], of the prompt with its longest completion
  together: np.ndarray  # int64 [N], of the prompt with all completions
  num_records: int  # usable ones, of all; N may be smaller
  num_comparisons: int  # of all, one per record without comparisons
  max_positions: int  # of model.init_from; 0 = none is given or no limit

  def quantile(self, share: float) -> int:
    """Tokens of a prompt with its longest completion, by share of records."""
    return _quantile(self.longest, share)

  def row(self, share: float, max_length: int) -> int:
    """Tokens of a prompt with all completions, once cut to max_length."""
    cut = np.maximum(self.longest - max_length, 0)
    return _quantile(self.together - cut, share)

  def num_longer(self, max_length: int) -> int:
    """How many measured records a limit of this many tokens cuts."""
    return int((self.longest > max_length).sum())


def measure(config: ConfigDict, limit: int = 20_000) -> Lengths:
  """Encodes data.train and counts tokens.

  Args:
    config: of base()'s structure; need not be complete.
    limit: records to encode; all others are only counted.

  Raises:
    InputError: the data or the tokenizer cannot be read, or no record can be
      used.
  """
  tokenizer = tokenizer_lib.load(
    config.tokenizer or initial_weights.tokenizer_of(config.model.init_from)
  )
  options = datasets.encode_options(config, tokenizer, (1.0,))
  options = options._replace(max_length=_UNCUT, prompt_max_length=None)
  names = config_lib.source_names(config.data.train)
  records = itertools.chain.from_iterable(
    datasets.open_source(config, name, print).records() for name in names
  )
  ledger = Ledger()
  first = itertools.islice(records, limit)
  encoded = list(encode.encode_stream(first, tokenizer, options, ledger))
  if not encoded:
    reasons = ', '.join(f'{k} {n:,}' for k, n in ledger.dropped.items())
    raise errors.refuse(
      'config.data.train',
      f'no record of {", ".join(names)} can be used ({reasons or "no rows"})',
      'mend the data: docs/data.md says what a row holds',
    )
  sizes = [[len(r.prompt), *map(len, r.completions)] for r in encoded]
  # The rest is taken to be usable.
  num_records, num_comparisons = len(encoded), 0
  for record in itertools.chain(encoded, records):
    num_comparisons += max(1, len(record.comparisons))
    num_records += isinstance(record, PreferenceRecord)
  source = config.model.init_from
  return Lengths(
    prompts=np.array([size[0] for size in sizes]),
    longest=np.array([size[0] + max(size[1:]) for size in sizes]),
    together=np.array([sum(size) for size in sizes]),
    num_records=num_records,
    num_comparisons=num_comparisons,
    max_positions=initial_weights.read_config(source).max_positions
    if source
    else 0,
  )


def _quantile(lengths: np.ndarray, share: float) -> int:
  """The least length that this share of the records does not exceed."""
  return int(np.quantile(lengths, share, method='inverted_cdf'))
