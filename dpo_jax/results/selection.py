"""Options -> rows, columns, order and baseline of a table.

Comes in: runs, groups or rows, and what --rows, --columns, --metrics, --sort
and --baseline say. Goes out: the chosen ones. Measures nothing: names that no
config and no run has are refused here, before anything is written.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

from dpo_jax import errors
from dpo_jax.results import labels, measures, options

WHENS = ('before', 'after')
# Columns that are neither a config key nor a metric.
FACTS = ('n', 'step')


class Columns(NamedTuple):
  """What --columns and --metrics ask for; None = by rule."""

  keys: tuple[str, ...] | None  # dotted config keys
  facts: tuple[str, ...]  # of FACTS, shown in any case
  metrics: tuple[tuple[str, str], ...] | None  # (name, when or '')


def keep(
  flat: Sequence[Mapping[str, Any]], rows: Sequence[tuple[str, Sequence[str]]]
) -> list[int]:
  """Returns the indices of the configs with one of the values of every key.

  Args:
    flat: {dotted key: value} of every run.
    rows: (key, values) as users write them.

  Raises:
    InputError: an unknown key, a value that no run has, or no run is left.
  """
  kept = list(range(len(flat)))
  for name, texts in rows:
    key = labels.resolve(name, known_keys(flat), '--rows')
    values = [config.get(key) for config in flat]
    for text in texts:
      if not any(labels.matches(value, text) for value in values):
        raise errors.refuse(
          '--rows', f'no run has {name}={text}', _use(name, values)
        )
    kept = [
      index
      for index in kept
      if any(labels.matches(values[index], text) for text in texts)
    ]
  if not kept:
    raise errors.refuse(
      '--rows', 'no run has all of these values', 'ask for fewer keys'
    )
  return kept


def columns(
  chosen: options.Options, known: Sequence[str], reported: Collection[str]
) -> Columns:
  """Returns the columns that the options name, each once.

  A name in --columns is a metric if it is one, except `loss`, which is the
  label; `loss after` is the metric.

  Args:
    chosen: the options.
    known: dotted config keys.
    reported: metrics of the runs.

  Raises:
    InputError: a name that is neither, or metrics by two flags.
  """
  keys, facts, metrics = [], [], []
  for name in chosen.columns or ():
    metric, when = metric_of(name, reported)
    if name in FACTS:
      facts.append(name)
    elif metric is not None:
      metrics.append((metric, when or 'after'))
    else:
      keys.append(_key(name, known, reported, '--columns'))
  if metrics and chosen.metrics is not None:
    raise errors.refuse(
      '--columns',
      f'names the metric {metrics[0][0]!r} besides --metrics',
      'name the metrics in one of the two',
    )
  if chosen.metrics is not None:
    metrics = [split_when(name) for name in chosen.metrics]
  return Columns(
    tuple(dict.fromkeys(keys)) or None,
    tuple(facts),
    tuple(metrics) if metrics else None,
  )


def baselines(
  flat: Sequence[Mapping[str, Any]],
  keys: Sequence[str],
  wanted: Sequence[tuple[str, str]],
) -> dict[int, int]:
  """Returns {row: the row that it is compared with}.

  If several rows are as `wanted`, each row is compared with the one that
  equals it in every other label.

  Args:
    flat: {dotted key: value} of every row.
    keys: the config keys of the labels.
    wanted: (key, value) of --baseline.

  Raises:
    InputError: an unknown key, or no such row.
  """
  fixed = []
  for name, text in wanted:
    fixed.append(labels.resolve(name, known_keys(flat), '--baseline'))
    values = [config.get(fixed[-1]) for config in flat]
    if not any(labels.matches(value, text) for value in values):
      raise errors.refuse(
        '--baseline', f'no row has {name}={text}', _use(name, values)
      )
  bases = [
    index
    for index, config in enumerate(flat)
    if all(labels.matches(config.get(k), t) for k, (_, t) in zip(fixed, wanted))
  ]
  if not bases:
    raise errors.refuse(
      '--baseline', 'no row has all of these values', 'name fewer keys'
    )
  others = [key for key in keys if key not in fixed]
  pairs = {}
  for index, config in enumerate(flat):
    fitting = [
      base
      for base in bases
      if len(bases) == 1
      or all(flat[base].get(key) == config.get(key) for key in others)
    ]
    if index not in bases and len(fitting) == 1:
      pairs[index] = fitting[0]
  return pairs


def order(
  names: Sequence[str],
  flat: Sequence[Mapping[str, Any]],
  value: Callable[[int, str, str], float | None],
  reported: Collection[str],
) -> list[int]:
  """Returns the indices of the rows as --sort says, the first name first.

  Args:
    names: config keys or metrics, '-' in front for descending.
    flat: {dotted key: value} of every row.
    value: (row, metric, when) -> the number, or None, which comes last.
    reported: metrics of the runs.

  Raises:
    InputError: neither a config key nor a metric.
  """
  indices = list(range(len(flat)))
  for name in reversed(names):
    sign = -1 if name.startswith('-') else 1
    name = name.removeprefix('-')
    metric, when = metric_of(name, reported)
    if metric is not None:
      numbers = [value(index, metric, when or 'after') for index in indices]
      rank = {
        index: (number is None, sign * (number or 0.0))
        for index, number in zip(indices, numbers)
      }
      indices.sort(key=rank.__getitem__)
    else:
      key = _key(name, known_keys(flat), reported, '--sort')
      texts = labels.texts_of([config.get(key) for config in flat])
      natural = [labels.natural(text) for text in texts]
      # Reversed, rows with equal labels keep their order.
      indices.sort(key=natural.__getitem__, reverse=sign < 0)
  return indices


def of_others(
  chosen: options.Options, reported: Collection[str]
) -> options.Options:
  """The options for the tables of evaluations on other data.

  They have one step, and lack some metrics, of training for one.

  Args:
    chosen: those of the main table.
    reported: metrics that the evaluations have.
  """

  def known(name: str) -> bool:
    measure = measures.find(split_when(name.removeprefix('-'))[0], reported)
    return measure is None or measure.name in reported

  def kept(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(name for name in names if known(name))

  metrics = chosen.metrics
  if metrics is not None:
    metrics = tuple(
      name
      for name in kept(metrics)
      if measures.find(split_when(name)[0], reported)
    )
  return chosen._replace(
    rows=(),
    metrics=metrics or None,
    columns=kept(chosen.columns or ()) or None,
    sort=kept(chosen.sort),
    at=options.At(),
  )


def metric_of(name: str, reported: Collection[str]) -> tuple[str | None, str]:
  """(metric, 'before', 'after' or '') of a name; None if it is a label.

  Raises:
    InputError: a name with 'before' or 'after' that is no metric.
  """
  metric, when = split_when(name)
  known = measures.find(metric, reported)
  if when and known is None:
    names = sorted({*measures.MEASURES, *reported})
    raise errors.refuse(
      f'column {name!r}',
      f'no run reports {metric!r}',
      f'{errors.did_you_mean(metric, names)}use any of {", ".join(names)}',
    )
  # `loss` alone is the label of the loss.
  if known is None or (not when and name.lower() == 'loss'):
    return None, when
  return known.name, when


def split_when(name: str) -> tuple[str, str]:
  """'KL before' -> ('KL', 'before'); 'KL' -> ('KL', '')."""
  metric, space, when = name.rpartition(' ')
  return (metric.strip(), when) if space and when in WHENS else (name, '')


def known_keys(flat: Sequence[Mapping[str, Any]]) -> list[str]:
  """The config keys that some run has."""
  return list(dict.fromkeys(key for config in flat for key in config))


def _key(name: str, known, reported, where: str) -> str:
  """The config key of a column that is no metric."""
  endings = any(f'.{key}'.endswith(f'.{name}') for key in known)
  if not endings and name.lower() != 'loss':
    words = [*FACTS, *(each.label for each in measures.MEASURES.values())]
    words += [*reported, *(key.rpartition('.')[2] for key in known), *known]
    raise errors.refuse(
      where,
      f'{name!r} is neither a config key nor a metric of these runs',
      f'{errors.did_you_mean(name, words)}use names such as loss, beta, '
      'accuracy, KL or "accuracy before"',
    )
  return labels.resolve(name, known, where)


def _use(name: str, values: Sequence[Any]) -> str:
  texts = dict.fromkeys(labels.value_text(value) for value in values)
  return f'{name} is {" or ".join(sorted(texts, key=labels.natural))}'
