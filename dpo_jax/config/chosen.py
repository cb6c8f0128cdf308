"""config -> plain values of what it chooses: sources, losses, optimizer.

Comes in: a ConfigDict of base()'s structure. Goes out: names, weights and
keyword arguments for the code below, which takes no ConfigDict. Checks nothing:
`check.py` does.
"""

from typing import Any

from ml_collections.config_dict import ConfigDict

from dpo_jax.config import knobs, rules
from dpo_jax.losses import catalogue
from dpo_jax.storage import files


def source_names(value: str | tuple[str, ...]) -> tuple[str, ...]:
  """Names in data.train: a tuple, or one text with commas between them."""
  return rules.split_names(value)


def parts_read(config: ConfigDict, mode: str) -> tuple[str, ...]:
  """The parts of the data, of 'train' and 'eval', that a mode reads."""
  is_sampled = mode in ('sample', 'frontier')
  if mode == 'export' or (is_sampled and config.sample.prompts):
    return ()
  reads_eval_only = is_sampled or mode == 'evaluate'
  return ('eval',) if reads_eval_only else ('train', 'eval')


def proportions(config: ConfigDict) -> tuple[float, ...]:
  """How many times each source of data.train is taken; 1 if not given."""
  given = rules.split_numbers(config.data.proportions)
  return given or (1.0,) * len(source_names(config.data.train))


def template_args(config: ConfigDict) -> dict[str, Any]:
  """The arguments that data.template_args adds to those of a chat template."""
  return files.parse_object(config.data.template_args)


def loss_terms(config: ConfigDict) -> dict[str, float]:
  """{loss: weight} of the terms whose weight is not 0."""
  return {k: v for k, v in config.loss.terms.items() if v != 0}


def row_needs(config: ConfigDict) -> list[str]:
  """Columns that every row must give for the losses, if any row does."""
  known = catalogue.read()
  needs = set().union(*(known[name].needs for name in loss_terms(config)))
  return sorted(needs & {'margin', 'scores', 'reference_scores'})


def loss_hyper(config: ConfigDict) -> dict[str, float]:
  """The losses' traced hyper-parameters that the config sets."""
  return {
    key: float(config.loss[key])
    for key in catalogue.hyper_names()
    if config.loss[key] is not None
  }


def loss_static(config: ConfigDict) -> dict[str, Any]:
  """The losses' static choices that the config sets."""
  return {
    key: config.loss[key]
    for key in catalogue.static_choices()
    if config.loss[key] is not None
  }


def loss_options(config: ConfigDict) -> tuple[str, ...]:
  """The options that are on: those whose own key is set, and not to False."""
  return tuple(
    name
    for name in catalogue.read_options()
    if config.loss[name] is not None and config.loss[name] is not False
  )


def scored_for(config: ConfigDict) -> tuple[str, ...]:
  """Losses and options of eval.score_for, whose needs evaluations serve too."""
  return rules.split_names(config.eval.score_for)


def optimizer_options(config: ConfigDict) -> dict[str, float | str]:
  """The keyword arguments of the chosen optimizer that the config sets."""
  return _set(config.optim, knobs.optimizers()[config.optim.name])


def schedule_options(config: ConfigDict) -> dict[str, float]:
  """The keyword arguments of the chosen schedule that the config sets."""
  return _set(config.optim, knobs.schedules()[config.optim.schedule])


def _set(section: ConfigDict, keys) -> dict[str, Any]:
  return {key: section[key] for key in keys if section[key] is not None}
