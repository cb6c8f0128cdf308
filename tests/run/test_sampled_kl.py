"""sampled_kl: all answers of a small model, float64 sums, shapes, padding."""

import dataclasses
import functools
import itertools

import jax
import jax.extend.core
import numpy as np
import pytest

from dpo_jax import types
from dpo_jax.models import decoder, generate, presets
from dpo_jax.models.generate import Sampling
from dpo_jax.run import sampled_kl

V, T, STOP = 6, 3, 4
PROMPT = (1, 3)
QUICK = {'xla_backend_optimization_level': 0}  # compiles in half the time
SETTINGS = {
  'plain': (Sampling(), None),
  'tempered': (Sampling(temperature=0.6), None),
  'top_p': (Sampling(temperature=1.3, top_p=0.8), None),
  'greedy': (Sampling(temperature=0.0), None),
  # Two ids of the head are no tokens.
  'known': (Sampling(), np.arange(V) < V - 1),
}


@functools.cache
def models():
  """A model of V tokens, a policy, and a reference that is not far from it."""
  sizes = dict(width=16, mlp_width=32, num_layers=1, num_heads=2, head_size=8)
  config = dataclasses.replace(
    presets.get('tiny', vocab_size=V), **sizes, num_kv_heads=2
  )
  model = decoder.make_model(config)
  one, other = (model.init(jax.random.key(seed)) for seed in (0, 1))
  # Initial weights as they are would give nearly uniform distributions.
  params = jax.tree.map(lambda x: x * 3, one)
  moved = jax.tree.map(lambda x, y: x + y, params, other)
  return model, params, moved


def answers():
  """All answers of at most T tokens: those that stop, those that are cut."""
  others = [token for token in range(V) if token != STOP]
  for length in range(T):
    for start in itertools.product(others, repeat=length):
      yield *start, STOP
  yield from itertools.product(others, repeat=T)


def log_softmax(logits):
  highest = logits.max(axis=-1, keepdims=True)
  with np.errstate(divide='ignore'):
    return (
      logits
      - highest
      - np.log(np.exp(logits - highest).sum(axis=-1, keepdims=True))
    )


def logits_of(params, texts):
  """Float64 logits [R, L, V] of whole texts [R, L]."""
  model = models()[0]
  places = np.tile(np.arange(texts.shape[1], dtype=np.int32), (len(texts), 1))
  zeros, ones = np.zeros_like(places), np.ones_like(places)
  rows = types.Rows(texts, places, ones, zeros, zeros, zeros - 1)
  hidden_RLD, _ = jax.jit(model.hidden, compiler_options=QUICK)(params, rows)
  return np.float64(hidden_RLD) @ np.float64(model.head(params).weight_VD).T


def sampled_from(logits, sampling, known_V):
  """Float64 log-probabilities of the distribution that is sampled from."""
  if known_V is not None:
    logits = np.where(known_V, logits, -np.inf)
  if sampling.temperature == 0:
    first = logits.argmax(axis=-1)[..., None]
    return np.where(np.arange(V) == first, 0, -np.inf)
  logps = log_softmax(logits / sampling.temperature)
  # The fewest tokens that together have top_p: a token stays if those before
  # it have less.
  order = np.argsort(-logps, axis=-1)
  probs = np.take_along_axis(np.exp(logps), order, axis=-1)
  before = np.cumsum(probs, axis=-1) - probs
  kept = np.zeros(logps.shape, bool)
  np.put_along_axis(kept, order, before < sampling.top_p, axis=-1)
  return log_softmax(np.where(kept, logps, -np.inf))


def difference(logps, frozen):
  """The log-ratio, 0 where nothing is drawn."""
  drawn = np.isfinite(logps)
  return np.subtract(logps, frozen, out=np.zeros(logps.shape), where=drawn)


def padded(lists):
  out = np.full((len(lists), T), 5, np.int32)  # not 0: padding is not read
  for row, tokens in enumerate(lists):
    out[row, : len(tokens)] = tokens
  return out, np.array([len(tokens) for tokens in lists], np.int32)


def estimate(sampling, known_V, tokens, counts, prompt=PROMPT, size=4):
  model, params, reference = models()
  prompts = np.full((len(tokens), size), 2, np.int32)
  prompts[:, : len(prompt)] = prompt
  lengths = np.where(counts, len(prompt), 0).astype(np.int32)
  made = sampled_kl.make_sampled_kl(model, T, known_V)
  out = jax.jit(made, compiler_options=QUICK)(
    params,
    reference,
    prompts,
    lengths,
    tokens,
    counts,
    Sampling(*map(np.float32, sampling)),
  )
  return jax.tree.map(np.float64, jax.device_get(out))


def enumerated(sampling, known_V):
  """(answers, log pi, log ref, sums of KL per token), float64."""
  _, params, reference = models()
  every = list(answers())
  tokens, counts = padded(every)
  texts = np.concatenate([np.tile(PROMPT, (len(every), 1)), tokens], axis=1)
  start = len(PROMPT) - 1
  logits, frozen = (
    logits_of(p, texts.astype(np.int32))[:, start : start + T]
    for p in (params, reference)
  )
  policy = sampled_from(logits, sampling, known_V)
  if known_V is not None:
    frozen = np.where(known_V, frozen, -np.inf)
  frozen = log_softmax(frozen)
  is_token = np.arange(T) < counts[:, None]

  def total(logps):
    taken = np.take_along_axis(logps, tokens[..., None], axis=-1)[..., 0]
    return np.where(is_token, taken, 0).sum(axis=1)

  ratio = difference(policy, frozen)
  kl = (np.exp(policy) * ratio).sum(axis=-1)
  return every, total(policy), total(frozen), np.where(is_token, kl, 0).sum(1)


@pytest.mark.parametrize('name', SETTINGS)
def test_both_are_unbiased_over_all_answers(name):
  sampling, known_V = SETTINGS[name]
  every, logps, frozen, sums = enumerated(sampling, known_V)
  probs = np.exp(logps)
  assert probs.sum() == pytest.approx(1, abs=1e-6)
  exact = (probs * difference(logps, frozen)).sum()
  assert exact > 0.1  # nats
  got = estimate(sampling, known_V, *padded(every))
  np.testing.assert_allclose(got.kl, sums, atol=2e-5)
  for values in (got.kl_mc, got.kl, difference(got.logps, frozen)):
    mean = (probs * np.where(probs > 0, values, 0)).sum()
    assert mean == pytest.approx(exact, abs=2e-5)
  assert (got.kl >= 0).all()
  np.testing.assert_allclose(got.kl_RT.sum(1), got.kl, atol=2e-5)
  # Given what was drawn before, a draw has mean 0: so it has at every place.
  draws = np.where(probs[:, None, None] > 0, got.draws_RTF, 0)
  weighted = probs[:, None, None] * draws
  np.testing.assert_allclose(weighted.sum(0), 0, atol=2e-5)
  if name != 'greedy':
    assert (np.abs(draws).max((0, 1)) > 0.01).all()


def test_samples_come_from_the_distribution_that_is_scored():
  model, params, _ = models()
  count = 2000
  made = generate.make_generate(model, max_new_tokens=T)
  drawn = jax.jit(made, compiler_options=QUICK)(
    params,
    np.tile(np.int32([*PROMPT, 0, 0]), (count, 1)),
    np.full(count, len(PROMPT), np.int32),
    np.arange(count, dtype=np.uint32),
    jax.random.key(0),
    Sampling(*map(np.float32, Sampling())),
    np.int32([STOP]),
  )
  tokens, counts = map(np.asarray, (drawn.tokens_RT, drawn.num_tokens))
  every, logps, frozen, _ = enumerated(Sampling(), None)
  number = {answer: i for i, answer in enumerate(every)}
  seen = np.zeros(len(every))
  for row, n in zip(tokens.tolist(), counts):
    seen[number[tuple(row[:n])]] += 1
  # Pearson's statistic of the answers of which five or more are expected.
  expected = count * np.exp(logps)
  often = expected >= 5
  chi2 = ((seen - expected)[often] ** 2 / expected[often]).sum()
  degrees = often.sum() - 1
  assert chi2 < degrees + 4 * np.sqrt(2 * degrees)
  got = estimate(Sampling(), None, tokens, counts)
  np.testing.assert_allclose(got.logps, drawn.logps_RT.sum(axis=1), atol=2e-5)
  exact = (np.exp(logps) * (logps - frozen)).sum()
  errors = {}
  for name in ('kl', 'kl_mc'):
    values = getattr(got, name)
    errors[name] = values.std() / np.sqrt(count)
    assert abs(values.mean() - exact) < 4 * errors[name]
  # The variance of the drawn tokens is what the first one is without.
  assert errors['kl'] < 0.5 * errors['kl_mc']


@pytest.mark.parametrize('scale', [1, 30])
def test_a_token_equals_float64(scale):
  rng = np.random.default_rng(0)
  logits, frozen = scale * rng.normal(size=(2, 5, 1000))
  token = rng.integers(1000, size=5).astype(np.int32)
  directions = rng.normal(size=(1000, 3))
  got, draws = sampled_kl.token_kl(
    *np.float32([logits, frozen]),
    token,
    Sampling(*map(np.float32, Sampling())),
    None,
    np.float32(directions),
  )
  policy, reference = map(log_softmax, (logits, frozen))
  want = (np.exp(policy) * (policy - reference)).sum(axis=-1)
  np.testing.assert_allclose(got.kl, want, rtol=2e-6, atol=1e-5)
  want = (policy - reference)[np.arange(5), token]
  np.testing.assert_allclose(got.kl_mc, want, rtol=2e-6, atol=5e-5)
  probs = np.exp(policy)
  surprisal = -policy - -(probs * policy).sum(1, keepdims=True)
  moved = directions[token] - probs @ directions
  want = np.c_[got.kl_mc - got.kl, surprisal[np.arange(5), token], moved]
  np.testing.assert_allclose(draws, want, rtol=2e-6, atol=1e-4)


def test_neither_padding_nor_what_follows_an_answer_counts():
  tokens, counts = padded([(0, STOP), (STOP,), (0, 1, 2)])
  want = estimate(Sampling(), None, tokens, counts)
  other = np.where(np.arange(T) < counts[:, None], tokens, 0)
  got = estimate(
    Sampling(),
    None,
    np.vstack([other, other[:1]]),
    np.append(counts, 0).astype(np.int32),  # a row of padding
    size=9,
  )
  for values, expected in zip(got, want):
    np.testing.assert_allclose(values[:3], expected, atol=1e-6)
    assert (values[3] == 0).all()


def test_equal_weights_have_no_kl():
  model, params, _ = models()
  tokens, counts = padded(list(answers())[:8])
  prompts = np.tile(np.int32(PROMPT), (8, 1))
  lengths = np.full(8, len(PROMPT), np.int32)
  made = jax.jit(sampled_kl.make_sampled_kl(model, T), compiler_options=QUICK)
  sampling = Sampling(*map(np.float32, Sampling()))
  got = made(params, params, prompts, lengths, tokens, counts, sampling)
  np.testing.assert_array_equal(got.kl, 0)
  np.testing.assert_array_equal(got.kl_mc, 0)


def test_a_wide_head_is_seen_in_few_directions():
  wide = jax.random.normal(jax.random.key(1), (50, 1000))
  seen = sampled_kl._directions(wide)
  assert seen.shape == (50, 64)
  # Distances are kept to about 1 / sqrt(64).
  ratio = np.linalg.norm(seen[0] - seen[1:], axis=1)
  ratio /= np.linalg.norm(wide[0] - wide[1:], axis=1) * 64**0.5 / 1000**0.5
  assert abs(ratio.mean() - 1) < 0.1 and ratio.std() < 0.2


def sizes(jaxpr):
  """The numbers of elements of all arrays of a program, loops included."""
  for equation in jaxpr.eqns:
    yield from (v.aval.size for v in equation.outvars)
    for inner in jax.extend.core.jaxprs_in_params(equation.params):
      yield from sizes(inner)


def test_no_array_holds_the_logits_of_all_tokens():
  config = presets.get('tiny', vocab_size=3000)
  model = decoder.make_model(config)
  params = jax.eval_shape(model.init, jax.random.key(0))
  R, steps = 4, 20
  made = sampled_kl.make_sampled_kl(model, steps)
  tokens, row = np.zeros((R, steps), np.int32), np.ones(R, np.int32)
  sampling = Sampling(*map(np.float32, Sampling()))
  program = jax.make_jaxpr(made)(
    params, params, tokens[:, :2], row, tokens, row, sampling
  )
  largest = max(sizes(program.jaxpr))
  assert R * 3000 <= largest < R * steps * 3000 / 2
