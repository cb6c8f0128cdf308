"""values per comparison -> symptoms of the held-out pairs.

Comes in: a `Case` with arrays. Goes out: as in symptoms.py. Length, wrong
labels, ties: what no mean of metrics.jsonl shows.
"""

import math
import statistics
from collections.abc import Mapping

import numpy as np

from dpo_jax.run.symptom_case import Case, short

# A correlation of .3 is 9 % of the margin's variance; its standard error over
# 256 comparisons is .06. Park et al. (arXiv:2403.19159): DPO uses length.
LENGTH_CORRELATION = 0.3
LONGER = 1.05  # chosen over rejected tokens
GROWTH = 1.2  # of samples, last over first
# Pairs lost as firmly as half of the won ones are won: so many times as often
# as with normal margins of the same accuracy, and at least so many.
NOISE_RATIO, NOISE_PAIRS = 2.0, 5
NOISE_ACCURACY = 0.75  # below it the policy is unsure, and the test blind
TIES = 0.01  # share of comparisons whose rewards are equal


def longer(case: Case) -> str:
  """Chosen answers are longer and the policy follows length; samples grew."""
  arrays, seen = case.arrays, []
  tokens = [arrays.get(f'{side}_tokens') for side in ('chosen', 'rejected')]
  margin = _margin(arrays)
  if margin is not None and all(each is not None for each in tokens):
    means = [float(np.mean(each)) for each in tokens]
    correlation = _correlation(margin, tokens[0] - tokens[1])
    if means[0] > LONGER * means[1] and correlation > LENGTH_CORRELATION:
      seen.append(
        f'chosen answers have {short(means[0])} tokens, rejected ones '
        f'{short(means[1])}, and margins follow the difference (correlation '
        f'{correlation:.2f})'
      )
  sampled = case.steps('samples', 'num_tokens')
  if len(sampled) > 1:
    first, last = sampled[min(sampled)], sampled[max(sampled)]
    if last > GROWTH * first:
      seen.append(f'samples grew from {short(first)} to {short(last)} tokens')
  if not seen:
    return ''
  knob = 'loss.ld_alpha=0.5, or loss.terms.rdpo in place of sigmoid'
  if 'kl' not in case.last:  # no reference, which both need
    knob = 'a loss of means per token, such as loss.terms.simpo'
  return (
    f'length grows: {"; ".join(seen)}. Usual where the data prefers long '
    f'answers (arXiv:2403.19159). Try {knob}.'
  )


def noise(case: Case) -> str:
  """Some held-out pairs are refused as firmly as others are accepted."""
  margin = _margin(case.arrays)
  accuracy = 0.0 if margin is None else float(np.mean(margin > 0))
  if not NOISE_ACCURACY <= accuracy < 1:
    return ''
  limit = float(np.median(margin[margin > 0]))
  firm, num = int(np.sum(margin < -limit)), len(margin)
  # Normal margins of variance 1 with this accuracy P(x > 0) have the mean q;
  # half of the positive ones are below q + `above`.
  normal = statistics.NormalDist()
  q, above = normal.inv_cdf(accuracy), normal.inv_cdf(1 - accuracy / 2)
  usual = num * normal.cdf(-2 * q - above)
  enough = max(NOISE_PAIRS, NOISE_RATIO * usual, usual + 3 * math.sqrt(usual))
  if firm < enough:
    return ''
  return (
    f'labels may be wrong: {firm} of {num} held-out pairs have a margin below '
    f'{short(-limit)}, as firm as half of the won ones but the other way; '
    f'{usual:.0f} would be usual at accuracy {accuracy:.0%}. Look at them with '
    f'--mode=show --record={_uid(case.arrays, margin)}; if they are flipped, '
    f'try loss.label_smoothing={min(2 * firm / num, 0.4):.2f} or '
    'loss.terms.robust.'
  )


def ties(case: Case) -> str:
  """Comparisons whose two answers have one reward."""
  margin = _margin(case.arrays)
  if margin is None or not np.any(margin):  # before a first update all do
    return ''
  share = float(np.mean(margin == 0))
  if share <= TIES:
    return ''
  return (
    f'{share:.0%} of the held-out pairs tie and count as lost: both answers '
    'have the same tokens. Usual cause: answers that differ only after '
    f'{case.knob("data.max_length")}; raise it.'
  )


def _margin(arrays: Mapping[str, np.ndarray]) -> np.ndarray | None:
  """Chosen minus rejected reward of comparisons that count, [P]."""
  if 'reward_chosen' not in arrays or len(arrays['reward_chosen']) < 20:
    return None
  return arrays['reward_chosen'] - arrays['reward_rejected']


def _uid(arrays: Mapping[str, np.ndarray], margin: np.ndarray) -> str:
  """The record of the lowest margin; 'ID' if no ids are there."""
  if 'uid' not in arrays:
    return 'ID'
  return np.char.decode(arrays['uid'][np.argmin(margin)], 'ascii').item()


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
  if np.ptp(first) == 0 or np.ptp(second) == 0:
    return 0.0
  return float(np.corrcoef(first, second)[0, 1])
