"""triton: interpreted it is dense attention, and it lowers for a GPU."""

import contextlib

import jax
import jax.numpy as jnp
import pytest
import random_plans
import test_decoder

from dpo_jax import types
from dpo_jax.models import decoder
from dpo_jax.models.kernels import intervals, proof, registry, triton


# Branches, padding to a block, GQA, a window and a soft cap among them.
@pytest.mark.parametrize('seed, dtype', [(51, 'float32'), (39, 'bfloat16')])
def test_it_is_dense_attention(seed, dtype):
  plan = random_plans.make(seed, num_rows=1)
  heads = plan.heads
  assert heads.window and heads.softcap and plan.branches > 1
  assert heads.num_heads > heads.num_kv_heads
  # More than one block, and not a multiple of it.
  assert triton.BLOCK < plan.rows.branch.shape[1] and (
    plan.rows.branch.shape[1] % triton.BLOCK
  )
  errors = random_plans.errors(plan, dtype, name='triton')
  assert errors.are_small, errors


def _on_a_gpu():
  """Newer versions of jax ask for the device that they lower for."""
  if jax.__version_info__ < (0, 11):
    return contextlib.nullcontext()
  device = jax.sharding.AbstractDevice(
    device_kind='NVIDIA H100 80GB HBM3', num_cores=None, platform='gpu'
  )
  mesh = jax.sharding.AbstractMesh((1,), ('x',), abstract_device=device)
  return jax.sharding.use_abstract_mesh(mesh)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('window, softcap', [(None, None), (20, 3.0)])
def test_value_and_gradient_are_lowered_to_triton(dtype, window, softcap):
  rows = proof.make_rows(256, 2)

  def total(q, k, v):
    out = triton.attend(
      q,
      k,
      v,
      intervals.make_intervals(rows),
      jnp.asarray(rows.positions),
      scale=0.1,
      window=window,
      softcap=softcap,
      interpret=False,
    )
    return out.astype(jnp.float32).sum()

  q, k = (jax.ShapeDtypeStruct((1, 256, n, 64), dtype) for n in (4, 2))
  with _on_a_gpu():
    traced = jax.jit(jax.grad(total, argnums=(0, 1, 2))).trace(q, k, k)
    text = traced.lower(lowering_platforms=('cuda',)).as_text()
  for name in ('', '_queries', '_keys'):
    assert f'name = "branch_attention{name}"' in text


@pytest.mark.parametrize('remat', ['full', 'dots'])
def test_remat_keeps_its_output_once_and_its_log_sums(remat):
  config = test_decoder.small('llama')
  model = decoder.make_model(
    config, remat=remat, kernel=registry.Choice('triton', interpret=True)
  )
  rows = types.Rows(*[jax.ShapeDtypeStruct((1, 64), jnp.int32)] * 6)
  shapes = []

  def residuals(params, rows):
    _, pullback = jax.vjp(lambda p: model.hidden(p, rows)[0], params)
    shapes.extend(x.shape for x in jax.tree.leaves(pullback))
    return 0

  jax.eval_shape(residuals, jax.eval_shape(model.init, jax.random.key(0)), rows)
  N, H, K = config.num_layers, config.num_heads, config.head_size
  # What the backward kernels read besides queries, keys and values; kept, so
  # that the forward kernel does not run twice.
  assert shapes.count((N, 1, 64, H, K)) == 1
  assert shapes.count((N, 1, H, 64)) == 1
