"""generate: golden greedy texts, filters in float64, seeds, statistics."""

import functools
import os
import pathlib

import jax
import numpy as np
import pytest

from dpo_jax import types
from dpo_jax.models import architectures, decoder, families, generate
from dpo_jax.models.generate import Sampling
from dpo_jax.storage import hf_checkpoint

QUICK = {'xla_backend_optimization_level': 0}  # compiles in half the time
GREEDY = Sampling(temperature=np.float32(0))
ONCE = (1, 403, 407, 261, 378)  # 'Once upon a time' in golden.npz

# Folders of hf_models/ to test. A $DPO_JAX_GOLDEN of one's own may have others.
GOLDEN = [*families.FAMILIES, 'llama3_rope_tied']
if os.environ.get('DPO_JAX_GOLDEN'):
  OTHERS = pathlib.Path(os.environ['DPO_JAX_GOLDEN'], 'hf_models').glob('*/')
  GOLDEN = sorted(path.name for path in OTHERS) or GOLDEN


@functools.cache
def read_model(folder):
  """The model of a Hugging Face folder and its parameters."""
  mapping = hf_checkpoint.read_config(folder)
  config = architectures.from_hf_config(mapping)
  return decoder.make_model(config), hf_checkpoint.load_params(folder, config)


@pytest.mark.parametrize('name', GOLDEN)
def test_golden_greedy(golden_models, name):
  # expected.npz: greedy texts by transformers, after the first tokens per row.
  model, params = read_model(golden_models / name)
  expected = np.load(golden_models / name / 'expected.npz')
  length = int(expected['greedy_prompt_len'])
  want = expected['greedy'][:, length:]
  made = generate.make_generate(model, max_new_tokens=want.shape[1])
  prompts = expected['input_ids'][:, : length + 2].copy()
  prompts[:, length:] = 7  # padding that must not be read
  lengths = np.full(len(prompts), length, np.int32)
  samples = jax.jit(made, compiler_options=QUICK)(
    params,
    prompts,
    lengths,
    np.uint32(lengths),
    jax.random.key(0),
    GREEDY,
    np.int32([-1]),
  )
  np.testing.assert_array_equal(samples.tokens_RT, want)


@functools.cache
def sampler(folder, new):
  model, params = read_model(folder)
  made = generate.make_generate(model, max_new_tokens=new)
  return functools.partial(jax.jit(made, compiler_options=QUICK), params)


def sample(folder, num_rows, seeds, sampling, *, new=40, prompt=ONCE, stop=-1):
  """Samples of one prompt; rows beyond the seeds are padding."""
  prompts = np.full((num_rows, 8), 3, np.int32)
  prompts[:, : len(prompt)] = prompt
  lengths = np.zeros(num_rows, np.int32)
  lengths[: len(seeds)] = len(prompt)
  padded = np.zeros(num_rows, np.uint32)
  padded[: len(seeds)] = seeds
  return jax.device_get(
    sampler(folder, new)(
      prompts,
      lengths,
      padded,
      jax.random.key(0),
      Sampling(*map(np.float32, sampling)),
      np.int32([stop]),
    )
  )


def uncached_logits(folder, texts):
  """Float64 logits of texts [R, L], read at once without a cache."""
  model, params = read_model(folder)
  positions = np.tile(
    np.arange(texts.shape[1], dtype=np.int32), (len(texts), 1)
  )
  zeros, ones = np.zeros_like(positions), np.ones_like(positions)
  rows = types.Rows(texts, positions, ones, zeros, zeros, zeros - 1)
  hidden_RLD, _ = jax.jit(model.hidden, compiler_options=QUICK)(params, rows)
  return np.float64(hidden_RLD) @ np.float64(model.head(params).weight_VD).T


def log_softmax(logits):
  highest = logits.max(axis=-1, keepdims=True)
  total = np.exp(logits - highest).sum(axis=-1, keepdims=True)
  return logits - highest - np.log(total)


@pytest.fixture(scope='module')
def stories(shared):
  return shared / 'data/models/stories260K'


def test_stories_greedy_equals_reading_it_all_again(stories):
  samples = sample(stories, 8, [5], GREEDY)
  text = np.array([[*ONCE, *samples.tokens_RT[0]]], np.int32)
  # Each token is the likeliest after all those before it, read again.
  logits = uncached_logits(stories, text)[0, len(ONCE) - 1 : -1]
  np.testing.assert_array_equal(samples.tokens_RT[0], logits.argmax(axis=-1))
  want = log_softmax(logits).max(axis=-1)
  np.testing.assert_allclose(samples.model_logps_RT[0], want, atol=1e-4)
  # The greedy policy gives its token probability 1.
  np.testing.assert_array_equal(samples.logps_RT[0], 0)
  assert samples.num_tokens[0] == 40 and not samples.num_tokens[1:].any()


def test_mean_log_prob_is_minus_the_entropy(stories):
  # E[log p(x)] = -H for each token; 2,560 tokens, within 3 standard errors.
  sampling = Sampling(0.8, 50, 0.95, 0.01)
  samples = sample(stories, 64, np.arange(64), sampling)
  texts = np.array([[*ONCE, *row] for row in samples.tokens_RT], np.int32)
  logits = uncached_logits(stories, texts)[:, len(ONCE) - 1 : -1]
  logps = np.apply_along_axis(brute_force, -1, logits, sampling)
  entropy = -np.nansum(np.exp(logps) * np.where(logps > -99, logps, 0), axis=-1)
  chosen = np.take_along_axis(logps, samples.tokens_RT[..., None], -1)[..., 0]
  np.testing.assert_allclose(samples.logps_RT, chosen, atol=1e-3)
  surplus = samples.logps_RT + entropy
  assert abs(surplus.mean()) < 3 * surplus.std() / surplus.size**0.5
  assert entropy.mean() > 0.3 and len(set(map(bytes, samples.tokens_RT))) == 64


def brute_force(logits, sampling):
  """Float64 log-probabilities of one distribution, filter after filter."""
  temperature, top_k, top_p, min_p = sampling
  logps = log_softmax(np.float64(logits) / temperature)
  order = np.argsort(-logps)
  order = order[: top_k or None]
  probs = np.exp(log_softmax(logps[order]))
  order = order[: 1 + int((np.cumsum(probs) < top_p).sum())]
  order = order[logps[order] >= logps.max() + np.log(max(min_p, 1e-300))]
  out = np.full(len(logps), -np.inf)
  out[order] = log_softmax(logps[order])
  return out


@pytest.mark.parametrize(
  'sampling',
  [
    (1, 0, 1, 0),
    (0.7, 5, 1, 0),
    (2, 0, 0.6, 0),
    (1.5, 8, 0.7, 0.2),
    (1, 1, 1, 0),
  ],
)
def test_filters_equal_brute_force(sampling):
  # The options are traced, so one program serves all.
  logits = 2 * np.random.default_rng(0).normal(size=(6, 30))
  traced = Sampling(*map(np.float32, sampling))
  policy = POLICY(np.float32(logits), traced)
  got = log_softmax(np.float64(policy))
  want = [brute_force(row, Sampling(*sampling)) for row in logits]
  np.testing.assert_allclose(got, want, atol=1e-5)
  assert POLICY._cache_size() == 1


POLICY = jax.jit(generate.policy_logits)


def test_a_row_does_not_depend_on_its_batch(stories):
  seeds = [11, 4, 9, 4, 77, 0, 3]
  sampling = Sampling(1.0, 0, 1.0, 0.0)
  many = sample(stories, 64, np.r_[seeds, 100:157], sampling)
  some = sample(stories, 7, seeds, sampling)
  one = sample(stories, 1, [4], sampling)
  np.testing.assert_array_equal(some.tokens_RT, many.tokens_RT[:7])
  np.testing.assert_array_equal(one.tokens_RT[0], many.tokens_RT[1])
  np.testing.assert_array_equal(some.tokens_RT[1], some.tokens_RT[3])
  assert len(set(map(bytes, many.tokens_RT))) == 63  # seed 4 twice


def test_a_stop_token_ends_a_row_and_the_rest_is_zero(stories):
  free = sample(stories, 7, range(7), Sampling(1.0, 0, 1.0, 0.0))
  stop = int(free.tokens_RT[2, 6])
  ended = sample(stories, 7, range(7), Sampling(1.0, 0, 1.0, 0.0), stop=stop)
  for row, tokens in enumerate(free.tokens_RT):
    stops = np.flatnonzero(tokens == stop)
    length = stops[0] + 1 if len(stops) else 40
    assert ended.num_tokens[row] == length
    assert ended.stopped[row] == bool(len(stops))
    np.testing.assert_array_equal(
      ended.tokens_RT[row, :length], tokens[:length]
    )
    assert not ended.tokens_RT[row, length:].any()
    assert not ended.logps_RT[row, length:].any()
  assert ended.stopped[2] and ended.num_tokens[2] <= 7
