"""stack: a scan over periods of layers is a loop over layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax.models import stack

KINDS = (1, 1, 5, 1, 1, 5, 1, 1)


def layer(kind, variables, carry):
  carry = jnp.sin(carry * variables['w'] + kind)
  return carry, {'sum': carry.sum(), 'kind': jnp.asarray(kind)}


@pytest.mark.parametrize(
  ('num', 'unroll'),
  [(1, 1), (2, 1), (3, 1), (4, 1), (6, 1), (8, 1), (6, 2), (8, 0)],
)
def test_periods_are_a_loop(num, unroll):
  kinds, variables = KINDS[:num], {'w': jnp.arange(1.0, num + 1)}

  def loop(variables, carry):
    outputs = []
    for i, kind in enumerate(kinds):
      carry, out = layer(kind, {'w': variables['w'][i]}, carry)
      outputs.append(out)
    return carry, jax.tree.map(lambda *x: jnp.stack(x), *outputs)

  def grads(run):
    return jax.value_and_grad(lambda v: run(v)[0].sum())(variables)

  x = jnp.ones(3)
  periods = lambda v: stack.scan_periods(layer, kinds, v, x, unroll)  # noqa: E731
  scan = lambda v: stack.scan(layer, jnp.asarray(kinds), v, x, unroll)  # noqa: E731
  want = loop(variables, x), grads(lambda v: loop(v, x))
  for run in (periods, scan):
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6),
      (run(variables), grads(run)),
      want,
    )


def test_the_body_is_one_period():
  def lengths(num):
    variables = {'w': jnp.ones(num)}
    run = lambda v: stack.scan_periods(layer, KINDS[:num], v, 1.0)  # noqa: E731
    jaxpr = jax.make_jaxpr(run)(variables)
    return [
      eqn.params['length'] for eqn in jaxpr.eqns if eqn.primitive.name == 'scan'
    ]

  assert lengths(6) == [2]  # (1, 1, 5) twice
  assert lengths(8) == [2]  # and two layers after it
  assert lengths(2) == [2]  # of one kind
