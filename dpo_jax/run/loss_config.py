"""config -> objective: the losses and options that a config chooses.

Comes in: a config whose losses were checked. Goes out: the Objective and its
traced hyper-parameters. Knows no data and no model.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np
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


def epsilon(
  objective: losses.Objective, hyper: Mapping[str, Any]
) -> float | None:
  """Returns the step of the tilted sums, see scoring.make_pair_score.

  Args:
    objective: whose scores are wanted.
    hyper: of the run; a loss that is only scored for has its default.

  Returns:
    The step; None if no loss reads tilted sums.
  """
  defaults = [loss.hyper.get('epsilon') for loss in objective.losses]
  default = next((value for value in defaults if value is not None), None)
  if default is None:
    return None
  # Every hyper-parameter has the digits of a float32, a default too.
  return float(np.float32(hyper.get('epsilon', default)))
