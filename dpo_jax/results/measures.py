"""Metric name -> how results label it, read it per example, and show it.

Comes in: names of metrics.jsonl, and the arrays of a per-example file. Goes
out: `Measure`s, one value per comparison, and the mean's dependence on each
prompt. Computes no reward and no loss:
those are read as the run saved them.

`MEASURES` is the one list of metrics that results know; every table and figure
reads it. A metric that is not in it, but that some run reports, can be asked
for by its name (`choose`).
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from dpo_jax import errors
from dpo_jax.results import labelled, statistics


def _kl(policy_chosen, policy_rejected, reference_chosen, reference_rejected):
  """-(a + b) / 2 with a, b the log-ratios of both completions, in nats."""
  chosen = policy_chosen - reference_chosen
  rejected = policy_rejected - reference_rejected
  return -0.5 * (chosen + rejected)


class Measure(NamedTuple):
  """A metric in tables and figures."""

  name: str  # in metrics.jsonl
  label: str  # in tables and figures
  fields: tuple[str, ...] = ()  # arrays [P] that `each` takes
  each: Callable[..., np.ndarray] = np.asarray  # arrays -> one value each, [P]
  shown: bool = False  # a column unless --metrics says otherwise
  plotted: bool = False  # a panel of the figure
  compared: bool = False  # subtracted between rows
  is_share: bool = False  # of comparisons of two fields; Wilson's interval
  better: str = ''  # 'higher' or 'lower'; '' = neither is better by itself


# Names of arrays in a per-example file.
_REWARDS = ('reward_chosen', 'reward_rejected')
_SCORES = ('policy_chosen', 'policy_rejected')
_SCORES += ('reference_chosen', 'reference_rejected')
_KNOWN = (
  Measure('loss', 'loss', ('loss',), shown=True, plotted=True, better='lower'),
  Measure(
    'rewards/accuracies',
    'accuracy',
    _REWARDS,
    np.greater,
    shown=True,
    plotted=True,
    compared=True,
    is_share=True,
    better='higher',
  ),
  Measure(
    'rewards/margins',
    'margin',
    _REWARDS,
    np.subtract,
    shown=True,
    plotted=True,
    compared=True,
  ),
  Measure('kl', 'KL', _SCORES, _kl, shown=True),
  Measure('lengths/chosen', 'chosen length', ('chosen_tokens',), shown=True),
  Measure(
    'lengths/rejected', 'rejected length', ('rejected_tokens',), shown=True
  ),
  Measure('entropy', 'entropy', ('entropy',), shown=True),
  Measure(
    'displacement',
    'displacement',
    ('policy_chosen', 'reference_chosen'),
    np.less,
    shown=True,
    is_share=True,
  ),
  # Not shown unless they are named. They are here because their arrays have
  # other names than they.
  Measure('rewards/chosen', 'rewards/chosen', ('reward_chosen',)),
  Measure('rewards/rejected', 'rewards/rejected', ('reward_rejected',)),
  Measure('logps/chosen', 'logps/chosen', ('policy_chosen',)),
  Measure('logps/rejected', 'logps/rejected', ('policy_rejected',)),
)
MEASURES = {measure.name: measure for measure in _KNOWN}
LOSS, ACCURACY = MEASURES['loss'], MEASURES['rewards/accuracies']
# Without names, `--recompute` shows these.
BASIC = ('loss', 'rewards/accuracies', 'rewards/margins', 'kl')
MARGIN, KL = MEASURES['rewards/margins'], MEASURES['kl']


def choose(
  names: Sequence[str] | None,
  reported: Collection[str],
  own: Collection[str] = (),
) -> tuple[Measure, ...]:
  """Returns the measures to show, each once, in the order of `names`.

  Args:
    names: of metrics.jsonl, or labels of MEASURES; None takes those that are
      shown by default, and `own`. A name that is not in MEASURES is read from
      the array of its own name.
    reported: every metric that some run has in its metrics.jsonl.
    own: reported metrics that evaluations alone have.

  Raises:
    InputError: a name that neither MEASURES nor any run has, or two names
      that would have one label.
  """
  if names is None:
    more = sorted(set(own) - set(MEASURES))
    shown = [measure for measure in _KNOWN if measure.shown]
    return tuple([*shown, *(Measure(each, each, (each,)) for each in more)])
  chosen = {}
  for name in names:
    measure = find(name, reported)
    if measure is None:
      known = sorted({*MEASURES, *reported})
      raise errors.refuse(
        '--metrics',
        f'no run reports {name!r}',
        f'{errors.did_you_mean(name, known)}use any of {", ".join(known)}',
      )
    # Whoever names a metric wants to see it.
    chosen[measure.name] = measure._replace(plotted=True)
  # Cells are found by label: two metrics must not share one.
  by_label = {measure.label: measure for measure in chosen.values()}
  for name, measure in chosen.items():
    other = by_label[measure.label].name
    if other != name:
      raise errors.refuse(
        '--metrics',
        f'{name!r} and {other!r} have the same label {measure.label!r}',
        'ask for one of them at a time',
      )
  return tuple(chosen.values())


def find(name: str, reported: Collection[str]) -> Measure | None:
  """The measure of a name or of a label; None if nothing has it."""
  if name in MEASURES:
    return MEASURES[name]
  if name in reported:
    return Measure(name, name, (name,))
  return next((each for each in _KNOWN if each.label == name), None)


def per_example(
  measure: Measure, arrays: Mapping[str, np.ndarray]
) -> np.ndarray | None:
  """Returns the metric of each comparison [P]; None if a field is missing.

  Args:
    measure: the metric.
    arrays: of a per-example file, by field, [P] each.
  """
  if not all(field in arrays for field in measure.fields):
    return None
  return measure.each(*(arrays[field] for field in measure.fields))


def jackknife(
  measure: Measure, arrays: Mapping[str, np.ndarray], prompts: np.ndarray
) -> statistics.Jackknife | None:
  """Returns the weighted mean and its dependence on each prompt.

  Args:
    measure: the metric.
    arrays: of a per-example file of comparisons or of labelled completions, by
      field, [P] each.
    prompts: [P], the prompt of each.

  Returns:
    Jackknife; None if a field is missing, or the mean is over nothing.
  """
  each = per_example(measure, arrays)
  if each is None:
    if 'desirable' not in arrays:
      return None
    return labelled.jackknife(measure.name, arrays, prompts)
  weight = arrays.get('weight', np.ones(len(each)))
  if not weight.sum() > 0:
    return None
  return statistics.leave_out(each, prompts, weight)
