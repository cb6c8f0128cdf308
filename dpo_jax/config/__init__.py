"""Choices: every knob of a run, once, and how experiment files are read."""

from dpo_jax.config.load import (
  base,
  load,
  loss_hyper,
  loss_options,
  loss_static,
  loss_terms,
  override,
  parse_arg,
  proportions,
  shrink,
  source_names,
  validate,
)

__all__ = [
  'base',
  'load',
  'loss_hyper',
  'loss_options',
  'loss_static',
  'loss_terms',
  'override',
  'parse_arg',
  'proportions',
  'shrink',
  'source_names',
  'validate',
]
