"""Experts of a layer: each position runs through the best few of many MLPs.

Comes in: the residual stream [R, L, D] and Rows. Goes out: the weighted sum of
the chosen experts' outputs, and RouterSums, from which `balance_loss` and
`balance_metrics` are computed for a batch. Does not drop positions, however
unbalanced the choices; grouped_mlp.py runs each through its own experts.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from dpo_jax import types
from dpo_jax.models import grouped_mlp, quantized
from dpo_jax.models.decoder_config import DecoderConfig
from dpo_jax.types import Array


class Experts(nn.Module):
  """`sum_e weight_e(x) down_e(act(gate_e x) * up_e x)`, e the chosen experts.

  The weights are the router's largest probabilities, divided by their sum if
  `normalise_experts` (Mixtral: arXiv:2401.04088, section 2.1; Qwen3:
  `norm_topk_prob`). The router is float32 (arXiv:2101.03961, section 2.4).
  """

  config: DecoderConfig
  dtype: Any  # of the experts' matmuls
  act: Callable[[Array], Array]
  mesh: Mesh | None = None  # mesh on which rows are split

  @nn.compact
  def __call__(
    self, x_RLD: Array, rows: types.Rows
  ) -> tuple[Array, types.RouterSums]:
    """Returns [R, L, D] in `dtype`, 0 for padding, and sums over the rest."""
    config, dtype = self.config, self.dtype

    def kernel(name):
      kernel = _Kernel(name=name)()
      return kernel if quantized.is_quantized(kernel) else kernel.astype(dtype)

    router_DE = _Kernel(name='router')()
    logits_RLE = jnp.einsum('RLD,DE->RLE', x_RLD.astype(jnp.float32), router_DE)
    weights_RLE, best_RLB, router = _route(config, logits_RLE, rows)
    kernels = kernel('gate'), kernel('up'), kernel('down')
    out_RLD = grouped_mlp.grouped_mlp(
      self.act, x_RLD, weights_RLE, best_RLB, kernels, self.mesh
    )
    return out_RLD, router


def balance_loss(router: types.RouterSums) -> Array:
  """Returns `E sum_e f_e P_e`, a scalar; the layers count as one.

  f_e is how often expert e was chosen per position, P_e its mean probability:
  Switch Transformer, arXiv:2101.03961, equations 4 to 6, for several choices
  per position, as in transformers' `load_balancing_loss_func`. A balanced
  router gives the number of choices per position. The gradient goes through
  P_e alone.

  Args:
    router: sums over the positions of a batch; those of microbatches add up.
  """
  # At least 1, so that a batch without positions gives 0.
  tokens = jnp.maximum(jnp.sum(router.tokens_N), 1.0)
  chosen_E = jnp.sum(router.chosen_NE, axis=0) / tokens
  probs_E = jnp.sum(router.probs_NE, axis=0) / tokens
  return chosen_E.size * jnp.vdot(jax.lax.stop_gradient(chosen_E), probs_E)


def balance_metrics(router: types.RouterSums) -> dict[str, Array]:
  """Returns scalars under `router/`.

  `aux_loss` is `balance_loss`. `max_expert_share` is the largest share of the
  choices of a layer that go to one expert: 1/E if balanced. `entropy` is the
  mean entropy of the router's distribution, nats: log E if uniform.
  """
  chosen = jnp.maximum(jnp.sum(router.chosen_NE, axis=1, keepdims=True), 1.0)
  tokens = jnp.maximum(jnp.sum(router.tokens_N), 1.0)
  return {
    'router/aux_loss': balance_loss(router),
    'router/max_expert_share': jnp.max(router.chosen_NE / chosen),
    'router/entropy': jnp.sum(router.entropy_N) / tokens,
  }


class _Kernel(nn.Module):
  """A kernel under the module's name: an array or a QArray."""

  @nn.compact
  def __call__(self):
    return self.get_variable('params', 'kernel')


def _route(config, logits_RLE, rows):
  """Weights [R, L, E], chosen experts [R, L, k] (E for padding), RouterSums."""
  log_probs_RLE = jax.nn.log_softmax(logits_RLE, axis=-1)
  probs_RLE = jnp.exp(log_probs_RLE)
  # B here counts the choices of a position, the best first.
  _, best_RLB = jax.lax.top_k(logits_RLE, config.experts_per_token)
  chosen_RLE = jax.nn.one_hot(best_RLB, config.num_experts).sum(axis=-2)
  weights_RLE = probs_RLE * chosen_RLE
  if config.normalise_experts:
    weights_RLE /= weights_RLE.sum(axis=-1, keepdims=True)
  real_RL1 = (rows.prompt_id > 0).astype(jnp.float32)[..., None]
  entropy_RLE = jax.lax.stop_gradient(-probs_RLE * log_probs_RLE)
  # No expert has index E: padding goes through none of them.
  best_RLB = jnp.where(real_RL1 > 0, best_RLB, config.num_experts)
  return (
    weights_RLE,
    best_RLB,
    types.RouterSums(
      chosen_NE=jnp.sum(chosen_RLE * real_RL1, axis=(0, 1)),
      probs_NE=jnp.sum(probs_RLE * real_RL1, axis=(0, 1)),
      entropy_N=jnp.sum(entropy_RLE * real_RL1),
      tokens_N=jnp.sum(real_RL1),
    ),
  )
