"""The layers of a decoder one after the other, as a scan.

Comes in: a function of one layer and parameters stacked on axis 0. Goes out:
the last layer's output. Knows nothing of what a layer computes.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

# (kind, variables of one layer, carry) -> (carry, further output)
Layer = Callable[[Any, Any, Any], tuple[Any, Any]]


def scan(layer: Layer, kinds: Any, variables: Any, carry: Any, unroll: int = 1):
  """Runs all layers with one compiled body; what differs between them is data.

  Args:
    layer: computes one layer.
    kinds: pytree of arrays [N, ..], a slice for each layer.
    variables: pytree of arrays [N, ..].
    carry: input of the first layer.
    unroll: layers per step of the loop; 0 = all, and no loop.

  Returns:
    The carry after the last layer, and the further outputs [N, ..].
  """
  return jax.lax.scan(
    lambda carry, one: layer(*one, carry),
    carry,
    (kinds, variables),
    unroll=unroll or True,
  )


def scan_periods(
  layer: Layer,
  kinds: Sequence[Any],
  variables: Any,
  carry: Any,
  unroll: int = 1,
):
  """Like `scan`, but kinds are constants: the body is a period of layers.

  Layers after the last whole period follow the scan, one by one.

  Args:
    layer: computes one layer.
    kinds: N values, compared with ==.
    variables: pytree of arrays [N, ..].
    carry: input of the first layer.
    unroll: periods per step of the loop; 0 = all, and no loop.
  """
  period = _period(kinds)
  num_scanned = len(kinds) // period * period

  def run(kinds, variables, carry):
    outputs = []
    for i, kind in enumerate(kinds):
      one = jax.tree.map(lambda x: x[i], variables)  # noqa: B023
      carry, output = layer(kind, one, carry)
      outputs.append(output)
    return carry, jax.tree.map(lambda *x: jnp.stack(x), *outputs)

  def groups(x):
    return x[:num_scanned].reshape(-1, period, *x.shape[1:])

  if period == 1:
    return scan(
      lambda _, one, carry: layer(kinds[0], one, carry),
      None,
      variables,
      carry,
      unroll,
    )
  carry, outputs = scan(
    lambda _, group, carry: run(kinds[:period], group, carry),
    None,
    jax.tree.map(groups, variables),
    carry,
    unroll,
  )
  outputs = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), outputs)
  if num_scanned == len(kinds):
    return carry, outputs
  rest = jax.tree.map(lambda x: x[num_scanned:], variables)
  carry, last = run(kinds[num_scanned:], rest, carry)
  join = lambda *x: jnp.concatenate(x)  # noqa: E731
  return carry, jax.tree.map(join, outputs, last)


def _period(kinds: Sequence[Any]) -> int:
  """The least p for which layer i is of the kind of layer i + p."""
  return next(
    p
    for p in range(1, len(kinds) + 1)
    if all(a == b for a, b in zip(kinds, kinds[p:]))
  )
