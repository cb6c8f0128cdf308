"""What an adapter is: its rank, its strength, the linear maps that it is on.

Comes in: plain values, a DecoderConfig. Goes out: an AdapterSpec, which
adapters.py makes arrays of. Imports no jax, so that a pattern that matches
nothing is refused before any device is touched.
"""

import dataclasses
import re
from collections.abc import Iterable

from dpo_jax import errors
from dpo_jax.models.decoder_config import DecoderConfig, param_dims
from dpo_jax.types import InputError

# How the frozen weights under an adapter are stored (quantized.py).
BASES = ('float32', 'int8', 'nf4')
# Which factor begins at 0; the other one is random.
INITS = ('b_zero', 'a_zero')
# What --mode=export writes: the merged weights, or a PEFT adapter folder.
EXPORTS = ('merged', 'peft')

# Linear maps of a layer that an adapter can be on: name -> dimensions in, out.
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
  targets: tuple[str, ...]  # of LINEARS, in that order
  rslora: bool = False  # scale = alpha / sqrt(rank), arXiv:2312.03732
  zero: str = 'b'  # which factor begins at 0, 'a' or 'b'; the other is random

  @property
  def scale(self) -> float:
    """What A B is multiplied by: alpha / rank, rsLoRA's alpha / sqrt(rank)."""
    return self.alpha / (self.rank**0.5 if self.rslora else self.rank)


def linears(config: DecoderConfig) -> tuple[str, ...]:
  """The linear maps of this decoder that an adapter can be on."""
  there = param_dims(config)
  return tuple(name for name in LINEARS if f'layers/{name}/kernel' in there)


def select(patterns: str, names: Iterable[str] = LINEARS) -> tuple[str, ...]:
  """The names that any of the patterns finds.

  Args:
    patterns: regular expressions with commas between them, each looked for
      anywhere in a name: 'query,value' or 'attention'; '' = every name.
    names: to choose from.

  Raises:
    InputError: a pattern that is none, or that no name has.
  """
  names, found = tuple(names), set()
  for pattern in filter(None, (p.strip() for p in patterns.split(','))):
    try:
      matches = [name for name in names if re.search(pattern, name)]
    except re.error as error:
      raise _refused(
        pattern, f'is no regular expression ({error})', names
      ) from None
    if not matches:
      raise _refused(pattern, 'matches nothing', names)
    found |= set(matches)
  return tuple(n for n in names if n in found) if found else names


def _refused(pattern: str, problem: str, names: tuple[str, ...]) -> InputError:
  words = [*names, *(word for name in names for word in name.split('/'))]
  hint = errors.did_you_mean(pattern, words)
  return errors.refuse(
    'config.adapter.targets',
    f'{pattern!r} {problem}',
    f'{hint}the linear maps are {", ".join(names)}',
  )
