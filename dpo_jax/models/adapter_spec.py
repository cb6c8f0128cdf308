"""Choices of an adapter: rank, strength, target linear maps, storage, export.

Comes in: plain values, a DecoderConfig. Goes out: an AdapterSpec, from which
adapters.py makes arrays. Imports no jax, so that a pattern that matches nothing
is refused before any device is touched.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

from dpo_jax import errors
from dpo_jax.models.decoder_config import DecoderConfig, param_dims
from dpo_jax.types import InputError

# How the frozen weights under an adapter are stored (quantized.py).
BASES = ('float32', 'int8', 'nf4')
# Which factor begins at 0; the other one is random.
INITS = ('b_zero', 'a_zero')
# What --mode=export writes: the merged weights, or a PEFT adapter folder.
EXPORTS = ('merged', 'peft')

# Linear maps of a layer that can have an adapter -> dimensions in, out. The
# maps of experts are not among them.
LINEARS = {
  'attention/query': ('D', 'HK'),
  'attention/key': ('D', 'GK'),
  'attention/value': ('D', 'GK'),
  'attention/out': ('HK', 'D'),
  'mlp/gate': ('D', 'F'),
  'mlp/up': ('D', 'F'),
  'mlp/down': ('F', 'D'),
}


@dataclasses.dataclass(frozen=True)
class AdapterSpec:
  """A LoRA adapter (arXiv:2106.09685): W + scale * A B on each target."""

  rank: int
  alpha: float
  targets: tuple[str, ...]  # names from LINEARS, in that order
  rslora: bool = False  # scale = alpha / sqrt(rank), arXiv:2312.03732
  zero: str = 'b'  # factor that begins at 0: 'a' or 'b', as in INITS

  @property
  def scale(self) -> float:
    """Factor on A B: alpha / rank, or alpha / sqrt(rank) for rsLoRA."""
    return self.alpha / (self.rank**0.5 if self.rslora else self.rank)


def linears(config: DecoderConfig) -> tuple[str, ...]:
  """Returns the linear maps of this decoder that can have an adapter."""
  dims = param_dims(config)
  return tuple(name for name in LINEARS if f'layers/{name}/kernel' in dims)


def from_choices(
  choices: Mapping[str, Any], config: DecoderConfig
) -> AdapterSpec:
  """Returns the adapter of a run's section `adapter`, on linear maps it has.

  Args:
    choices: the section, of a config or of a config.json; older runs lack
      keys, which then have their defaults.
    config: the decoder.
  """
  names = linears(config)
  return AdapterSpec(
    rank=choices['rank'],
    alpha=choices['alpha'],
    targets=select(choices.get('targets', ''), names),
    rslora=choices.get('rslora', False),
    zero=choices.get('init', INITS[0]).removesuffix('_zero'),
  )


def select(patterns: str, names: Iterable[str] = LINEARS) -> tuple[str, ...]:
  """Returns the names that match any of the patterns, in their order.

  Args:
    patterns: regular expressions, separated by commas. Each may match anywhere
      in a name: 'query,value' or 'attention'. '' selects every name.
    names: linear maps to choose from.

  Raises:
    InputError: an invalid pattern, or one that matches no linear map.
  """
  names, selected = tuple(names), set()
  for pattern in filter(None, (p.strip() for p in patterns.split(','))):
    try:
      matches = [name for name in names if re.search(pattern, name)]
    except re.error as error:
      raise _refused(
        pattern, f'is no regular expression ({error})', names
      ) from None
    if not matches:
      raise _refused(pattern, 'matches nothing', names)
    selected |= set(matches)
  return tuple(n for n in names if n in selected) if selected else names


def _refused(pattern: str, problem: str, names: tuple[str, ...]) -> InputError:
  # The hint may be a whole name or one half of it: 'attention', 'query'.
  words = [*names, *(word for name in names for word in name.split('/'))]
  hint = errors.did_you_mean(pattern, words)
  return errors.refuse(
    'config.adapter.targets',
    f'{pattern!r} {problem}',
    f'{hint}the linear maps are {", ".join(names)}',
  )
