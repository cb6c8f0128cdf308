"""experts: each position by hand, balance, padding, a mesh."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax import sharding, types
from dpo_jax.models import decoder, experts
from dpo_jax.models.decoder_config import DecoderConfig

CONFIG = DecoderConfig(
  vocab_size=20,
  width=8,
  mlp_width=12,
  num_layers=2,
  num_heads=4,
  num_kv_heads=2,
  head_size=4,
  num_experts=6,
  experts_per_token=3,
)


def rows_of(shape, padding=2, seed=0):
  """Rows of random tokens that end in `padding` slots of padding."""
  tokens = np.random.default_rng(seed).integers(0, 20, shape).astype(np.int32)
  real = np.ones(shape, np.int32)
  real[:, shape[1] - padding :] = 0
  positions = np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape)
  zeros = np.zeros(shape, np.int32)
  return types.Rows(tokens, positions, real, zeros, zeros, zeros - 1)


def layer_params(seed=0):
  """Random kernels of one layer's router and experts."""
  rng = np.random.default_rng(seed)
  sizes, out = CONFIG.sizes, {}
  dims = {'router': 'DE', 'gate': 'EDF', 'up': 'EDF', 'down': 'EFD'}
  for name, letters in dims.items():
    shape = [sizes[d] for d in letters]
    out[name] = {'kernel': rng.normal(size=shape).astype(np.float32)}
  return out


def softmax(x):
  e = np.exp(x - x.max(axis=-1, keepdims=True))
  return e / e.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize('normalise', [True, False])
def test_a_position_runs_through_its_own_experts(normalise):
  config = DecoderConfig(**{**vars(CONFIG), 'normalise_experts': normalise})
  rows = rows_of((2, 5))
  x = np.random.default_rng(1).normal(size=(2, 5, 8)).astype(np.float32)
  params = layer_params()
  module = experts.Experts(config, jnp.float32, nn.silu)
  got, router = jax.jit(module.apply)({'params': params}, x, rows)
  w = {k: np.float64(v['kernel']) for k, v in params.items()}
  want, chosen, probs_sum = np.zeros((2, 5, 8)), np.zeros(6), np.zeros(6)
  # Padding stays 0.
  for r, i in zip(*np.nonzero(rows.prompt_id)):
    h = np.float64(x[r, i])
    probs = softmax(h @ w['router'])
    best = np.argsort(-probs)[:3]
    total = probs[best].sum() if normalise else 1.0
    for e in best:
      gate, up = h @ w['gate'][e], h @ w['up'][e]
      out = (gate / (1 + np.exp(-gate)) * up) @ w['down'][e]
      want[r, i] += probs[e] / total * out
    chosen[best] += 1
    probs_sum += probs
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose(router.chosen_NE, chosen)
  np.testing.assert_allclose(router.probs_NE, probs_sum, rtol=1e-5)
  assert router.tokens_N == 6  # 2 rows of 5, each with 2 of padding


def sums(logits_NTE, best):
  """RouterSums of gate logits [layers, tokens, experts]."""
  probs = softmax(logits_NTE)
  order = np.argsort(-logits_NTE, axis=-1)[..., :best]
  chosen = np.eye(probs.shape[-1])[order].sum(axis=(1, 2))
  entropy = -(probs * np.log(probs)).sum(axis=(1, 2))
  tokens = np.full(len(probs), probs.shape[1])
  parts = chosen, probs.sum(axis=1), entropy, tokens
  return types.RouterSums(*(jnp.float32(x) for x in parts))


def test_balance_loss_is_load_balancing_loss_func():
  # transformers, models/mixtral/modeling_mixtral.py: the logits of all layers
  # are one list of tokens; one mean per choice k; E sum_ke mean_ke P_e.
  logits = np.random.default_rng(0).normal(size=(2, 7, 6))
  flat = logits.reshape(-1, 6)
  probs = softmax(flat)
  mask = np.eye(6)[np.argsort(-probs, axis=-1)[:, :3]]  # [tokens, choice, E]
  want = 6 * (mask.mean(axis=0) * probs.mean(axis=0)[None]).sum()
  router = sums(logits, best=3)
  assert float(experts.balance_loss(router)) == pytest.approx(want, rel=1e-6)
  # Sums of two parts of the tokens add up to those of all.
  parts = [sums(logits[:, part], 3) for part in (slice(0, 2), slice(2, 7))]
  both = jax.tree.map(jnp.add, *parts)
  assert float(experts.balance_loss(both)) == pytest.approx(want, rel=1e-6)


def test_balance_metrics_at_the_extremes():
  # All experts equally often: E * sum_e (k/E) (1/E) = k, share 1/E.
  even = types.RouterSums(
    chosen_NE=jnp.full((2, 4), 6.0),
    probs_NE=jnp.full((2, 4), 3.0),
    entropy_N=jnp.full(2, 12 * np.log(4)),
    tokens_N=jnp.full(2, 12.0),
  )
  got = experts.balance_metrics(even)
  assert float(got['router/aux_loss']) == pytest.approx(2.0)
  assert float(got['router/max_expert_share']) == pytest.approx(0.25)
  assert float(got['router/entropy']) == pytest.approx(np.log(4))
  # One layer of two sends everything to expert 1: the maximum is that layer's.
  one = jnp.array([[0.0, 24, 0, 0], [6.0, 6, 6, 6]])
  got = experts.balance_metrics(even._replace(chosen_NE=one))
  assert float(got['router/max_expert_share']) == pytest.approx(1.0)
  nothing = jax.tree.map(jnp.zeros_like, even)
  assert all(v == 0 for v in experts.balance_metrics(nothing).values())


def test_padding_counts_nothing_and_a_mesh_changes_nothing():
  model = decoder.make_model(CONFIG, remat='full')
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda x: (0.3 * rng.normal(size=x.shape)).astype(np.float32),
    jax.eval_shape(model.init, jax.random.key(0)),
  )

  def total(model, params, rows):
    hidden_RLD, aux = model.hidden(params, rows)
    real_RL1 = (rows.prompt_id > 0)[..., None]
    balance = experts.balance_loss(aux['router'])
    return jnp.sum(jnp.sin(hidden_RLD) * real_RL1) + 5 * balance, aux

  def run(model, *arguments):
    fn = functools.partial(total, model)
    return jax.jit(jax.value_and_grad(fn, has_aux=True))(*arguments)

  rows = rows_of((4, 6))
  (want, aux), grads = run(model, params, rows)
  assert aux['router'].chosen_NE.shape == (2, 6)
  np.testing.assert_allclose(aux['router'].tokens_N, 16)
  mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
  where = sharding.param_shardings(mesh, model.logical_axes, params)
  up = where['layers']['experts']['up']['kernel']
  assert tuple(up.spec) == (None, None, 'fsdp', 'tensor')
  wider = jax.tree.map(lambda x: np.pad(x, ((0, 0), (0, 3))), rows)
  by_row = jax.NamedSharding(mesh, jax.P(('data', 'fsdp')))
  placed = jax.device_put(params, where), jax.device_put(wider, by_row)
  split = decoder.make_model(CONFIG, remat='full', mesh=mesh)
  (got, aux), mesh_grads = run(split, *placed)
  assert float(got) == pytest.approx(float(want), rel=1e-5)
  np.testing.assert_allclose(aux['router'].tokens_N, 16)
  for a, b in zip(jax.tree.leaves(mesh_grads), jax.tree.leaves(grads)):
    np.testing.assert_allclose(a, b, atol=2e-5 * np.abs(b).max())
