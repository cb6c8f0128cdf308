"""Every knob of a run, its checks, and the reading of experiment files."""

from dpo_jax.config.check import check_losses, validate
from dpo_jax.config.chosen import (
  loss_hyper,
  loss_options,
  loss_static,
  loss_terms,
  optimizer_options,
  parts_read,
  proportions,
  row_needs,
  schedule_options,
  scored_for,
  source_names,
  template_args,
)
from dpo_jax.config.help import help_text
from dpo_jax.config.knobs import base
from dpo_jax.config.load import load, override, parse_arg, shrink
from dpo_jax.config.stored import resolve

__all__ = [
  'base',
  'check_losses',
  'help_text',
  'load',
  'loss_hyper',
  'loss_options',
  'loss_static',
  'loss_terms',
  'optimizer_options',
  'override',
  'parse_arg',
  'parts_read',
  'proportions',
  'resolve',
  'row_needs',
  'schedule_options',
  'scored_for',
  'shrink',
  'source_names',
  'template_args',
  'validate',
]
