"""Labelled completions -> means and their dependence on each prompt.

Comes in: the arrays of a per-example file without comparisons: one reward and
one label per completion. Goes out: a `Jackknife` of a metric, by the definition
of `metrics.label_sums`. Computes no reward and no loss.
"""

from collections.abc import Mapping

import numpy as np

from dpo_jax.results import statistics

# Metric without its side -> array.
_SIDED = {'rewards': 'reward', 'logps': 'policy', 'lengths': 'num_tokens'}


def jackknife(
  name: str, arrays: Mapping[str, np.ndarray], prompts: np.ndarray
) -> statistics.Jackknife | None:
  """Returns a metric of labelled completions; None if it is not defined.

  Args:
    name: in metrics.jsonl.
    arrays: of a per-example file, by field, [E] each; `desirable` among them.
    prompts: [E], the prompt of each completion.
  """
  weight = arrays.get('weight', np.ones(len(prompts)))
  good = weight * arrays['desirable']
  bad = weight - good
  metric, _, side = name.partition('/')
  try:
    if name == 'rewards/accuracies':
      return _ordered(arrays['reward'], good, bad, prompts)
    if name == 'rewards/margins':
      sides = (_mean(arrays['reward'], prompts, each) for each in (good, bad))
      return _difference(*sides)
    if name == 'kl':
      drift = arrays['reference'] - arrays['policy']
      return _mean(drift, prompts, weight)
    if name == 'displacement':
      return _mean(arrays['policy'] < arrays['reference'], prompts, good)
    if metric in _SIDED and side in ('chosen', 'rejected'):
      each = good if side == 'chosen' else bad
      return _mean(arrays[_SIDED[metric]], prompts, each)
  except KeyError:
    pass  # an array that the run did not save
  return None


def _mean(values, prompts, weight) -> statistics.Jackknife | None:
  if not weight.sum() > 0:
    return None  # a mean over nothing
  return statistics.leave_out(values, prompts, weight)


def _difference(chosen, rejected) -> statistics.Jackknife | None:
  if chosen is None or rejected is None:
    return None
  return statistics.Jackknife(
    chosen.mean - rejected.mean,
    chosen.moves - rejected.moves,
    (chosen.shares + rejected.shares) / 2,
  )


def _ordered(rewards, good, bad, prompts) -> statistics.Jackknife | None:
  """The share of all (desirable, undesirable) pairs that are put in order.

  Leaving out a prompt takes away the pairs that one of its completions is in.
  """
  if not (good.sum() > 0 and bad.sum() > 0):
    return None
  _, index = np.unique(prompts, return_inverse=True)
  # Won pairs of each completion, by the weight of the other side.
  won = good * _weight_below(rewards, rewards, bad)
  lost = bad * _weight_below(-rewards, -rewards, good)
  total = won.sum()
  gone = np.bincount(index, won + lost)
  for prompt in np.flatnonzero(np.bincount(index) > 1):
    own = index == prompt
    both = good[own] * _weight_below(rewards[own], rewards[own], bad[own])
    gone[prompt] -= both.sum()  # counted on both sides
  goods, bads = np.bincount(index, good), np.bincount(index, bad)
  pairs = (good.sum() - goods) * (bad.sum() - bads)
  share = total / (good.sum() * bad.sum())
  with np.errstate(invalid='ignore', divide='ignore'):
    without = np.where(pairs > 0, (total - gone) / pairs, np.nan)
  shares = (goods / good.sum() + bads / bad.sum()) / 2
  return statistics.Jackknife(float(share), share - without, shares)


def _weight_below(values, others, weight) -> np.ndarray:
  """The weight of the `others` that are smaller than each value."""
  order = np.argsort(others, kind='stable')
  sums = np.concatenate([[0.0], np.cumsum(weight[order])])
  return sums[np.searchsorted(others[order], values, side='left')]
