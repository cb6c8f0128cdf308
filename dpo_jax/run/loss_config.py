"""config -> objective: the losses and options that a config chooses.

Comes in: a config whose losses were checked. Goes out: the Objective and its
traced hyper-parameters. Knows no data and no model.
"""

import dataclasses
from collections.abc import Iterable

import jax
from ml_collections.config_dict import ConfigDict

from dpo_jax import config as config_lib
from dpo_jax import losses


def make(
  config: ConfigDict,
) -> tuple[losses.Objective, dict[str, jax.Array]]:
  """Makes the objective and the hyper-parameters of config.loss.

  Returns:
    (Objective, {name: float32 scalar}), see losses.default_hyper.
  """
  terms = config_lib.loss_terms(config)
  static = config_lib.loss_static(config)
  options = config_lib.loss_options(config)
  hyper = losses.default_hyper(
    terms, options, **config_lib.loss_hyper(config), **static
  )
  return losses.make_objective(tuple(terms), static, options), hyper


def with_names(
  objective: losses.Objective, names: Iterable[str]
) -> losses.Objective:
  """Returns an objective that needs what further losses and options need.

  It serves to score, not to train: its terms need not go together.

  Args:
    objective: of the run.
    names: of losses and options.
  """
  options = losses.option_names()
  extra = [name for name in names if name in options]
  terms = [name for name in names if name not in options]
  return dataclasses.replace(
    objective,
    terms=tuple(dict.fromkeys((*objective.terms, *terms))),
    options=tuple(dict.fromkeys((*objective.options, *extra))),
  )
