"""train_step: adapters; ln 2 on any base, gradients, exports after updates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax import losses, optim, scoring, train_step, types
from dpo_jax.data.batches import length_table, pipeline
from dpo_jax.models import (
  adapter_spec,
  adapters,
  architectures,
  decoder,
  quantized,
)
from dpo_jax.models.adapter_spec import AdapterSpec
from dpo_jax.storage import hf_checkpoint
from dpo_jax.train_step import init_state

SIGMOID = {'sigmoid': 1.0}
QUICK = {'xla_backend_optimization_level': 0}  # compiles in half the time
OBJECTIVE = losses.make_objective(tuple(SIGMOID))


def golden(folder):
  config = architectures.from_hf_config(hf_checkpoint.read_config(folder))
  return config, hf_checkpoint.load_params(folder, config)


def batch_of(config, num=4):
  """Pairs of random tokens, packed, two branches per prompt."""
  rng = np.random.default_rng(0)

  def tokens(length):
    return rng.integers(1, config.vocab_size, length).astype(np.int32)

  records = [
    types.EncodedRecord(
      tokens(6), (tokens(8), tokens(5)), (types.Comparison(0, 1),)
    )
    for _ in range(num)
  ]
  plan = pipeline.make_plan(
    length_table.make_table(records), seed=0, batch_size=num, row_length=32
  )
  return plan.batch(0, records)


def spec_of(config, zero='b', patterns=''):
  names = adapter_spec.linears(config)
  targets = adapter_spec.select(patterns, names)
  return AdapterSpec(rank=4, alpha=8.0, targets=targets, zero=zero)


@pytest.mark.parametrize(
  ('base', 'dtype', 'limit'),
  [
    ('int8', jnp.float32, 1e-6),
    ('nf4', jnp.bfloat16, 1e-3),
  ],
)
def test_loss_at_step_0_is_ln2(golden_models, base, dtype, limit):
  config, params = golden(golden_models / 'llama')
  model = decoder.make_model(config, compute_dtype=dtype)
  stored = quantized.quantize(params, base)
  eval_step = jax.jit(
    train_step.make_eval_step(scoring.make_score(model, chunk=64), OBJECTIVE),
    compiler_options=QUICK,
  )
  hyper, batch = losses.default_hyper(SIGMOID), batch_of(config)
  frozen = types.Frozen(stored, jnp.float32(2.0))
  for zero in 'ab':
    adapter = adapters.init(config, spec_of(config, zero), jax.random.key(1))
    policy, reference = eval_step(adapter, frozen, batch)
    loss, _ = OBJECTIVE(policy, reference, batch, hyper)
    assert abs(float(loss) - np.log(2)) < limit
    np.testing.assert_array_equal(policy.logps, reference.logps)


def test_two_updates_then_the_merged_export_scores_alike(
  golden_models, tmp_path
):
  config, params = golden(golden_models / 'gpt2')
  batch, spec = batch_of(config), spec_of(config)
  score = scoring.make_score(decoder.make_model(config), chunk=64)
  optimizer = optim.make_optimizer('adamw')
  schedule = optim.make_schedule('constant', num_steps=2)
  step = jax.jit(
    train_step.make_train_step(score, OBJECTIVE, optimizer, schedule),
    compiler_options=QUICK,
  )
  adapter = adapters.init(config, spec, jax.random.key(0))
  state = init_state(adapter, optimizer, seed=0)
  frozen = types.Frozen(params, jnp.float32(spec.scale))
  hyper = losses.default_hyper(SIGMOID) | {'learning_rate': jnp.float32(1e-3)}
  for number in range(2):
    state, metrics = step(state, frozen, batch, hyper)
    if number == 0:
      assert abs(float(metrics['loss']) - np.log(2)) < 1e-6
  assert float(metrics['loss']) < 0.69
  # Gradient and moments have the structure of the adapter.
  moments = state.opt_state[0].mu
  assert jax.tree.structure(moments) == jax.tree.structure(adapter)
  adapted = types.Adapted(params, state.params, spec.scale)
  merged = jax.device_get(adapters.merge(adapted))
  hf_checkpoint.save(tmp_path / 'merged', merged, config)
  again = hf_checkpoint.load_params(tmp_path / 'merged', config)
  rows = jax.tree.map(lambda x: x[0], batch.rows)
  logps = jax.jit(score, static_argnums=2, compiler_options=QUICK)
  ours, theirs, before = (
    logps(weights, rows, 8).logps for weights in (adapted, again, params)
  )
  np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-5)
  assert np.abs(ours - before).max() > 0.05
