"""Every option with every loss that takes it, at extreme scores."""

import harness
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax import losses
from dpo_jax.losses import rules

# {option: the choices to try}; tr_dpo changes no number of a batch.
CHOICES = {
  'f_divergence': [
    {'f_divergence': name}
    for name in losses.get_option('f_divergence').static['f_divergence']
  ],
  'beta_dpo': [{'beta_dpo_per': name} for name in ('batch', 'comparison')],
  'wpo': [{'wpo_clamp': clamp} for clamp in (True, False)],
}
CASES = [
  (option, choice)
  for option in losses.option_names()
  if option != 'tr_dpo'
  for choice in CHOICES.get(option, [{}])
]
# log-ratios of winner and loser, log pi of both, tokens of both.
HIGH, LONG = np.array([1e4, 1e4, -1e4, -1e4]), np.array([1, 4096, 1, 4096])
EXTREMES = (
  dict(a_w=HIGH, a_l=-HIGH, tokens=(LONG, 4097 - LONG), policy=(-1e4, -2e4)),
  dict(a_w=HIGH, a_l=HIGH[::-1], tokens=(LONG, LONG), policy=(-1e-3, -1e4)),
  dict(a_w=0 * HIGH, a_l=HIGH, tokens=(LONG, LONG[::-1]), policy=(-90, -41)),
)


@pytest.mark.parametrize('option,static', CASES)
def test_value_and_gradient_are_finite(option, static):
  record = losses.get_option(option)
  terms = [
    name for name in losses.names() if rules.accepts(record, losses.get(name))
  ]
  objective = losses.make_objective(tuple(terms), static, (option,))
  # Keys that losses share, within the bounds of all.
  hyper = {'beta': 0.1, 'label_smoothing': 0.1} | record.hyper
  for loss in objective.losses:
    hyper = loss.hyper | hyper

  def loss_of(policy, reference, weights):
    batch = harness.batch_of(weight=(1, 0.5, 2, 0))
    given = {k: jnp.float32(v) for k, v in hyper.items()}
    given |= {f'weight/{name}': w for name, w in zip(terms, weights)}
    kept, state = objective.prepare(
      policy, reference, batch, given, objective.init_state()
    )
    return objective(policy, reference, kept, given, state=state)[0]

  # One program for all losses of the option: a weight of 1 selects one.
  program = jax.jit(
    jax.vmap(jax.value_and_grad(loss_of), in_axes=(None, None, 0)),
    compiler_options={
      'xla_backend_optimization_level': 0,
      'xla_llvm_disable_expensive_passes': True,
    },
  )
  for extreme in EXTREMES:
    scores = harness.scores_of(**extreme)
    outputs = program(*scores, jnp.eye(len(terms)))
    for leaf in jax.tree.leaves(outputs):
      finite = np.isfinite(leaf).reshape(len(terms), -1).all(1)
      assert finite.all(), [t for t, ok in zip(terms, finite) if not ok]
