"""registry: a decoder with a kernel is the dense one, on any mesh."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import random_plans
import test_decoder
import xla_documents

from dpo_jax import sharding
from dpo_jax.models import decoder
from dpo_jax.models.kernels import registry, splash

# Windows and rotations with a period of 2, and a layer after the last one.
CONFIG = dataclasses.replace(
  test_decoder.small('gemma3'),
  num_layers=5,
  layer_windows=(3, 0) * 2 + (3,),
  layer_ropes=(1, 0) * 2 + (1,),
)


@pytest.fixture
def outputs(monkeypatch):
  """run(choice, mesh): states and gradients of a small decoder."""
  monkeypatch.setattr(splash, 'attend', xla_documents.attend)
  rows = random_plans.make(0, num_rows=4).rows
  rows = jax.tree.map(lambda x: x[:, :40], rows)
  tokens = np.random.default_rng(0).integers(0, 50, rows.tokens.shape)
  rows = rows._replace(tokens=tokens)
  is_real = jnp.asarray(rows.prompt_id > 0)[..., None]
  init = jax.jit(decoder.make_model(CONFIG).init)
  params = init(jax.random.key(0))

  def run(choice, mesh=None, remat='none'):
    model = decoder.make_model(CONFIG, kernel=choice, mesh=mesh, remat=remat)

    def loss(params):
      states = jnp.where(is_real, model.hidden(params, rows)[0], 0)
      return (states**3).sum(), states

    place = params
    if mesh is not None:
      shardings = sharding.param_shardings(mesh, model.logical_axes, params)
      place = jax.device_put(params, shardings)
    (_, states), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(place)
    return states, grads

  return run


def check(got, want):
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    np.testing.assert_allclose(a, b, atol=2e-5 * float(np.abs(b).max()))


def test_a_decoder_with_a_kernel_is_the_dense_one(outputs):
  choice = registry.Choice('splash', branches=4)
  want = outputs(registry.DENSE)
  check(outputs(choice, remat='full'), want)
  # Rows over data and fsdp, heads over tensor.
  mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
  check(outputs(choice, mesh), want)


def test_each_device_attends_to_its_own_rows_and_heads(outputs, monkeypatch):
  shapes = []

  def attend(q, k, v, segments, **options):
    shapes.append((q.shape, k.shape))
    return xla_documents.attend(q, k, v, segments, **options)

  monkeypatch.setattr(splash, 'attend', attend)
  mesh = sharding.make_mesh(data=2, fsdp=2, tensor=2)
  outputs(registry.Choice('splash', branches=4), mesh)
  # 1 of 4 rows as 4 documents, 2 of 4 query heads and 1 of 2 key heads.
  assert set(shapes) == {((4, 128, 2, 6), (4, 128, 1, 6))}


@pytest.mark.parametrize(
  'name, options, dtype, backend, words',
  [
    ('cudnn', {}, 'bfloat16', 'cpu', 'it runs on gpu, this is cpu'),
    ('splash', {}, 'bfloat16', 'gpu', 'it runs on tpu or cpu, this is gpu'),
    ('cudnn', {}, 'float32', 'gpu', 'it has no float32'),
    ('cudnn', {'attention_softcap': 3.0}, 'bfloat16', 'gpu', 'no soft cap'),
    ('fa4', {}, 'bfloat16', 'gpu', 'the package fa4_jax is not there'),
    ('splash', {'attention_softcap': 3.0}, 'float32', 'tpu', ''),
  ],
)
def test_what_does_not_fit_is_said(name, options, dtype, backend, words):
  config = dataclasses.replace(test_decoder.SMALL, **options)
  problem, _ = registry.problem(name, config, dtype, backend)
  assert words in problem and bool(words) == bool(problem)
