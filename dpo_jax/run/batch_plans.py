"""records -> the plans of a run's batches.

Comes in: the config and the records. Goes out: which records each batch of
training and of evaluation has, and in which rows. Reads no token.
"""

import jax
from ml_collections.config_dict import ConfigDict

from dpo_jax import losses, sharding
from dpo_jax.data.batches import pipeline
from dpo_jax.run.inputs import Inputs


def make(
  config: ConfigDict,
  inputs: Inputs,
  mesh: jax.sharding.Mesh | jax.sharding.AbstractMesh,
  objective: losses.Objective,
  scored: losses.Objective,
) -> tuple[pipeline.Plan | None, pipeline.Plan | None]:
  """Returns the plans of training and of evaluation; None = not read.

  Args:
    config: validated.
    inputs: the records.
    mesh: the rows of a batch are a multiple of its row axes.
    objective: of training.
    scored: what the scores of an evaluation serve.
  """
  data, model = config.data, inputs.model
  longest = data.max_length
  if model.learned_positions:
    longest = min(longest, model.max_positions)
  common = {
    'row_length': data.row_length or data.max_length,
    'layout': data.layout,
    'row_multiple': sharding.row_multiple(mesh),
    'max_shapes': data.max_shapes,
    'weigh_prompts': data.weigh_prompts,
  }

  def mismatched_length(objective):
    return longest if 'mismatched' in objective.needs else 0

  train = inputs.train and pipeline.make_plan(
    inputs.train.store.table,
    seed=config.seed,
    batch_size=config.train.batch_size,
    microbatches=config.train.microbatches,
    indices=inputs.train.indices,
    mismatched_length=mismatched_length(objective),
    **common,
  )
  # Evaluation runs in the order of the data: it is the same for every seed.
  evaluation = inputs.evaluation and pipeline.make_plan(
    inputs.evaluation.store.table,
    seed=0,
    batch_size=config.eval.batch_size,
    shuffle=False,
    indices=inputs.evaluation.indices,
    mismatched_length=mismatched_length(scored),
    # At most two row counts: each one compiles the evaluation step again.
    **(common | {'max_shapes': min(2, data.max_shapes)}),
  )
  return train, evaluation
