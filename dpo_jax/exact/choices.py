"""Choices of losses: which have a meaning here, and their hyper-parameters.

Comes in: words such as `robust:label_smoothing=noise`. Goes out: `Choice`s, or
an InputError. LEFT_OUT says why a registered loss is not among them.
"""

from collections.abc import Mapping
from typing import NamedTuple

from dpo_jax import errors
from dpo_jax.losses import registry, rules

LEFT_OUT = {
  'alpha_dpo': 'its margin follows moving moments that count comparisons, not '
  'their weights',
  'amapo': 'its margin follows moments that count comparisons, not weights',
  'epsilon_dpo': 'its beta moves with every update: there is no one optimum',
  'odpo': 'it needs the higher reward on the chosen answer, and a winner of '
  'Bradley-Terry may have the lower one',
  'qrpo': 'it optimises a quantile of the reward, whose optimum is another',
  'npo': 'it has no chosen answer: unlearning',
  'simnpo': 'it has no chosen answer: unlearning',
  'infonca': 'it reads scores of all answers, and no comparison',
  'softmax': 'it reads scores of all answers, and no comparison',
  'plackett_luce': 'it reads scores of all answers, and no comparison',
  'sft': 'it is nll by another name',
}
# Without --losses: one or two of each family, the robust ones told the noise.
DEFAULT = (
  'sigmoid',
  'ipo',
  'robust:label_smoothing=noise',
  'sigmoid:label_smoothing=noise',
  'hinge',
  'exponential',
  'sympo',
  'exo_pair',
  'apo_zero',
  'bco_pair',
  'sppo_hard',
  'kto',
  'dpo_shift',
  'simpo',
  'cpo',
  'orpo',
  'nll',
)
_NOISE = 'noise'  # value of a hyper-parameter: the chance of a flipped label


class Choice(NamedTuple):
  """A loss with settings that differ from its defaults."""

  word: str  # as it was given
  name: str  # of the loss
  label: str  # for tables and figures
  settings: Mapping[str, float | str]  # {hyper-parameter: number or 'noise'}

  def hyper(self, beta: float, noise: float) -> dict[str, float]:
    """Hyper-parameters at a beta and a chance of flipped labels."""
    values = dict(registry.get(self.name).hyper)
    if 'beta' in values:
      values['beta'] = beta
    for key, value in self.settings.items():
      values[key] = noise if value == _NOISE else value
    return values


def usable() -> tuple[str, ...]:
  """Names of the registered losses that have a meaning here, sorted."""
  return tuple(name for name in registry.names() if name not in LEFT_OUT)


def read(words: str) -> tuple[Choice, ...]:
  """Reads losses with commas between: NAME or NAME:KEY=VALUE:KEY=VALUE.

  Args:
    words: the text; 'default' and 'all' stand for lists. The beta is that of
      the cell, and VALUE is a number or 'noise'.

  Raises:
    InputError: an unknown loss or key, or a value out of bounds.
  """
  listed = []
  for word in words.split(','):
    lists = {'default': DEFAULT, 'all': usable()}
    listed += lists.get(word.strip(), [word.strip()])
  return tuple(_read_one(word) for word in dict.fromkeys(listed))


def _read_one(word: str) -> Choice:
  name, *pairs = word.split(':')
  if name not in registry.names():
    raise errors.refuse(
      '--losses',
      f'{name!r} is not a loss',
      f'{rules.hint(name, usable())}use {", ".join(usable())}, default or all',
    )
  if name in LEFT_OUT:
    raise errors.refuse(
      '--losses', f'{name} has no place here, {LEFT_OUT[name]}', 'leave it out'
    )
  loss, settings = registry.get(name), {}
  for pair in pairs:
    key, _, text = pair.partition('=')
    value = _NOISE if text == _NOISE else _number(word, text)
    if key == 'beta' or key not in loss.hyper:
      known = ', '.join(k for k in loss.hyper if k != 'beta') or 'none'
      raise errors.refuse(
        f'--losses={word}', f'{key!r} is not allowed', f'use one of {known}'
      )
    bounds = loss.bounds.get(key)
    if value != _NOISE and bounds and not rules.within(value, bounds):
      raise errors.refuse(
        f'--losses={word}', f'{value:g} is not allowed', f'use one in {bounds}'
      )
    settings[key] = value
  own = ', '.join(f'{key}={value}' for key, value in settings.items())
  label = f'{loss.label} ({own})' if own else loss.label
  return Choice(word, name, label, settings)


def _number(word: str, text: str) -> float:
  try:
    return float(text)
  except ValueError:
    raise errors.refuse(
      f'--losses={word}', f'{text!r} is not a number', 'write 0.1 or noise'
    ) from None
