"""scoring: every layout gives the scores and gradients of separate texts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax import scoring
from dpo_jax.data.batches import length_table, pipeline
from dpo_jax.models import architectures, decoder, decoder_config
from dpo_jax.storage import hf_checkpoint
from dpo_jax.types import Comparison, EncodedRecord

TINY = decoder_config.DecoderConfig(
  vocab_size=40,
  width=16,
  mlp_width=24,
  num_layers=2,
  num_heads=4,
  num_kv_heads=2,
  head_size=4,
)


def make_records(vocab_size, seed=0):
  """Six prompts, two or three answers each, lengths from 1 token."""
  rng = np.random.default_rng(seed)

  def ids(low, high):
    return rng.integers(1, vocab_size, rng.integers(low, high)).astype('i4')

  records = []
  for _ in range(6):
    answers = tuple(ids(1, 12) for _ in range(rng.integers(2, 4)))
    records.append(EncodedRecord(ids(1, 14), answers, (Comparison(0, 1),)))
  return records


def scores_and_gradient(model, params, records, layout, batch_size=6):
  """Scores by (record, completion), and the gradient of a weighted sum."""
  plan = pipeline.make_plan(
    length_table.make_table(records),
    seed=0,
    batch_size=batch_size,
    row_length=64,
    layout=layout,
    shuffle=False,
    max_shapes=1,
  )
  score = scoring.make_score(model, chunk=16)

  @functools.partial(jax.jit, static_argnums=2)
  def both(params, rows, num_completions, weights):
    def total(params):
      scores = score(params, rows, num_completions)
      return jnp.sum(scores.logps * weights), scores.logps

    return jax.grad(total, has_aux=True)(params)

  scores, gradient = {}, jax.tree.map(jnp.zeros_like, params)
  for t in range(plan.steps_per_epoch):
    rows = jax.tree.map(lambda x: x[0], plan.batch(t, records).rows)
    index = plan.completion_index(t)
    weights = np.where(index >= 0, 1 + index % 5, 0).astype(np.float32)
    grads, logps = both(params, rows, len(index), weights)
    gradient = jax.tree.map(jnp.add, gradient, grads)
    scores |= {i: v for i, v in zip(index, np.asarray(logps)) if i >= 0}
  return scores, gradient


@pytest.fixture(scope='module')
def model_and_params(trained_llama):
  """A trained Llama if the real data is there, else a random decoder."""
  if trained_llama:
    mapping = hf_checkpoint.read_config(trained_llama)
    config = architectures.from_hf_config(mapping)
    params = hf_checkpoint.load_params(trained_llama, config)
    return decoder.make_model(config, attention_block=32), params
  model = decoder.make_model(TINY, attention_block=32)
  return model, model.init(jax.random.key(0))


def test_layouts_agree_with_lone_texts(model_and_params):
  model, params = model_and_params
  records = make_records(model.config.vocab_size)
  lone, lone_grad = scores_and_gradient(model, params, records, 'padded', 1)
  largest = max(np.abs(g).max() for g in jax.tree.leaves(lone_grad))
  for layout in ('padded', 'packed', 'shared'):
    scores, grad = scores_and_gradient(model, params, records, layout)
    assert set(scores) == set(lone)
    for i in lone:
      np.testing.assert_allclose(scores[i], lone[i], rtol=1e-5, atol=1e-5)
    for a, b in zip(jax.tree.leaves(grad), jax.tree.leaves(lone_grad)):
      np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * largest)


@pytest.mark.parametrize('index', [0, 2])
def test_token_log_probabilities_of_the_trained_llama(shared, index):
  # golden.npz: an independent float64 forward pass.
  folder = shared / 'data/models/stories260K'
  golden = np.load(folder / 'golden.npz')
  ids, expected = golden[f'ids{index}'], golden[f'logp{index}']
  config = architectures.from_hf_config(hf_checkpoint.read_config(folder))
  model = decoder.make_model(config)
  params = hf_checkpoint.load_params(folder, config)
  # One record per token: the answer is the token, the prompt all before it.
  records = [
    EncodedRecord(ids[:t].astype('i4'), (ids[t : t + 1].astype('i4'),), ())
    for t in range(1, len(ids))
  ]
  plan = pipeline.make_plan(
    length_table.make_table(records),
    seed=0,
    batch_size=len(records),
    row_length=64,
    shuffle=False,
  )
  rows = jax.tree.map(lambda x: x[0], plan.batch(0, records).rows)
  score = jax.jit(scoring.make_score(model), static_argnums=2)
  got = score(params, rows, len(records)).logps
  assert np.abs(got - expected).max() < 1e-4
