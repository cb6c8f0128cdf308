"""scoring: against float64 arithmetic, token by token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from dpo_jax import scoring, sharding, types
from dpo_jax.models import output_head

BATCH = toy.batch()
ROWS = jax.tree.map(lambda x: x[0], BATCH.rows)
NUM = BATCH.labels.shape[0]


def brute_force(params, rows, softcap=None, scale=1.0):
  """Loops over tokens in float64: (logps [C], counts [C], entropy [C])."""
  p = {k: v.astype(np.float64) for k, v in params.items()}
  out = np.zeros((3, NUM))
  for r, t in np.argwhere(rows.completion_id >= 0):
    h = p['embed'][rows.tokens[r, t]] + p['pos'][rows.positions[r, t]]
    logits = scale * (p['head'] @ h) + p['bias']
    if softcap:
      logits = softcap * np.tanh(logits / softcap)
    logps = logits - np.log(np.sum(np.exp(logits)))
    entropy = -np.sum(np.exp(logps) * logps)
    out[:, rows.completion_id[r, t]] += (
      logps[rows.targets[r, t]],
      1,
      entropy,
    )
  return out


@pytest.mark.parametrize('softcap,scale', [(None, 1.0), (3.0, 0.5)])
@pytest.mark.parametrize('chunk', [1, 7, 4096])
def test_scores_equal_the_brute_force(chunk, softcap, scale):
  model = toy.ToyModel(softcap, scale)
  score = scoring.make_score(model, chunk=chunk, wanted=('entropy',))
  got = jax.jit(score, static_argnums=2)(toy.params(), ROWS, NUM)
  logps, counts, entropy = brute_force(toy.params(), ROWS, softcap, scale)
  np.testing.assert_allclose(got.logps, logps, rtol=1e-5, atol=1e-5)
  np.testing.assert_array_equal(got.num_tokens, counts)
  np.testing.assert_allclose(got.entropy, entropy, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('chunk', [5, 0])
@pytest.mark.parametrize('split', [False, True])
def test_gradients_equal_those_of_full_logits(split, chunk, monkeypatch):
  monkeypatch.setattr(output_head, 'KEPT_CHUNK', 7)
  mesh = sharding.make_mesh(data=4, fsdp=2) if split else None
  weights = jnp.arange(1.0, NUM + 1)

  def grads(**options):
    score = scoring.make_score(toy.ToyModel(3.0), **options)
    return jax.jit(
      jax.grad(lambda p: jnp.sum(score(p, ROWS, NUM).logps * weights))
    )(toy.params())

  full, chunked = grads(full_logits=True), grads(chunk=chunk, mesh=mesh)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
    full,
    chunked,
  )


def test_entropy_carries_no_gradient():
  score = scoring.make_score(toy.ToyModel(), wanted=('entropy',))
  grad = jax.grad(lambda p: jnp.sum(score(p, ROWS, NUM).entropy))
  for leaf in jax.tree.leaves(grad(toy.params())):
    np.testing.assert_array_equal(leaf, 0)


def test_positions_that_predict_nothing_do_not_matter():
  rng = np.random.default_rng(3)
  noise = rng.integers(0, toy.VOCAB, ROWS.tokens.shape)
  free = ROWS.completion_id < 0
  noisy = ROWS._replace(
    tokens=np.where(free, noise, ROWS.tokens).astype(np.int32),
    targets=np.where(free, noise, ROWS.targets).astype(np.int32),
  )
  score = jax.jit(scoring.make_score(toy.ToyModel()), static_argnums=2)
  a, b = score(toy.params(), ROWS, NUM), score(toy.params(), noisy, NUM)
  np.testing.assert_array_equal(a.logps, b.logps)


def test_full_logits_never_exist_in_the_chunked_program():
  vocab, width, chunk = 4096, 8, 16
  params = {
    'embed': np.zeros((vocab, width), np.float32),
    'pos': np.zeros((32, width), np.float32),
    'head': np.zeros((vocab, width), np.float32),
    'bias': np.zeros((vocab,), np.float32),
  }
  full_bytes = ROWS.tokens.size * vocab * 4

  def temporaries(**options):
    score = scoring.make_score(toy.ToyModel(), **options)
    grad = jax.jit(jax.grad(lambda p: jnp.sum(score(p, ROWS, NUM).logps)))
    analysis = grad.lower(params).compile().memory_analysis()
    return analysis.temp_size_in_bytes

  assert temporaries(full_logits=True) >= full_bytes
  # A few [chunk, V] blocks and the head's gradient, not [R, L, V].
  assert temporaries(chunk=chunk) < full_bytes / 2


def test_bfloat16_hidden_states_are_summed_in_float32():
  class HalfModel(toy.ToyModel):
    def hidden(self, params, rows):
      hidden, aux = super().hidden(params, rows)
      return hidden.astype(jnp.bfloat16), aux

  got = scoring.make_score(HalfModel())(toy.params(), ROWS, NUM)
  assert got.logps.dtype == jnp.float32
  logps, _, _ = brute_force(toy.params(), ROWS)
  # bf16 has 8 bits: inputs are off by 2^-9, sums of up to 9 tokens.
  np.testing.assert_allclose(got.logps, logps, rtol=2e-2, atol=0.2)


def test_log_sum_of_squares_equals_the_brute_force():
  score = scoring.make_score(toy.ToyModel(), chunk=7, wanted=('sum_sq_probs',))
  got = score(toy.params(), ROWS, NUM)
  p = {k: v.astype(np.float64) for k, v in toy.params().items()}
  expected = np.zeros(NUM)
  for r, t in np.argwhere(ROWS.completion_id >= 0):
    h = p['embed'][ROWS.tokens[r, t]] + p['pos'][ROWS.positions[r, t]]
    probs = np.exp(p['head'] @ h + p['bias'])
    probs /= probs.sum()
    expected[ROWS.completion_id[r, t]] += np.log(np.sum(probs**2))
  np.testing.assert_allclose(got.log_sum_sq_probs, expected, rtol=1e-5)


@pytest.mark.parametrize('every', [None, 3])
def test_heads_are_sums_of_the_first_tokens(every):
  winner, loser = np.array([0, 3, 5, 0]), np.array([1, 2, 4, 0])
  ids = ROWS.completion_id.copy()
  if every:  # tokens that are not targets do not count
    ids.reshape(-1)[::every] = -1
  test_rows = ROWS._replace(completion_id=ids)
  lengths = np.asarray(scoring.count_tokens(test_rows, NUM))
  first = np.minimum(lengths[winner], lengths[loser])
  assert (first < np.maximum(lengths[winner], lengths[loser])).any()
  heads = types.Heads(*map(jnp.asarray, (winner, loser, first)))
  score = scoring.make_score(toy.ToyModel(), chunk=7)
  got = score(toy.params(), test_rows, NUM, heads)
  for side, completions in zip(got.heads_2P, (winner, loser)):
    for value, completion, count in zip(side, completions, first):
      # Branches lie in reading order: keep the first `count` positions.
      own = np.argwhere(ids == completion)[: int(count)]
      kept = np.full_like(ids, -1)
      kept[tuple(own.T)] = 0
      rows = ROWS._replace(completion_id=kept)
      expected = score(toy.params(), rows, 1).logps[0]
      np.testing.assert_allclose(value, expected, rtol=1e-5)


def token_kl(params, reference, rows):
  """KL(reference, policy) of every predicting position, by the formula."""

  def log_probs(p):
    h = p['embed'][rows.tokens] + p['pos'][rows.positions]
    return jax.nn.log_softmax(
      jnp.einsum('rld,vd->rlv', h, p['head']) + p['bias']
    )

  ref, pi = log_probs(reference), log_probs(params)
  kl_RL = jnp.sum(jnp.exp(ref) * (ref - pi), -1)
  return jnp.where(rows.completion_id >= 0, kl_RL, 0.0)


@pytest.mark.parametrize(
  'options',
  [
    {'chunk': 7},
    {'chunk': 0},
    {'full_logits': True},
    {'mesh': {'data': 4, 'fsdp': 2}},
  ],
)
def test_kl_to_the_reference_and_its_gradient(options):
  mesh = options.pop('mesh', None)
  if mesh:
    options = {'chunk': 5, 'mesh': sharding.make_mesh(**mesh)}
  score = scoring.make_pair_score(toy.ToyModel(), **options)
  policy, reference = toy.params(), toy.params(5)
  weights = jnp.arange(1.0, NUM + 1)

  def chunked(params, frozen):
    scores, _ = score(params, frozen, ROWS, NUM)
    return jnp.sum(scores.kl * weights), scores

  def direct(params, frozen):
    kl_RL = token_kl(params, frozen, ROWS)
    return jnp.sum(kl_RL * weights[ROWS.completion_id])

  grad = jax.jit(jax.value_and_grad(chunked, (0, 1), has_aux=True))
  (value, scores), (for_policy, for_frozen) = grad(policy, reference)
  expected, wanted = jax.value_and_grad(direct)(policy, reference)
  np.testing.assert_allclose(value, expected, rtol=1e-5)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
    for_policy,
    wanted,
  )
  assert not any(np.any(leaf) for leaf in jax.tree.leaves(for_frozen))
  plain = scoring.make_score(toy.ToyModel())
  np.testing.assert_allclose(
    scores.logps, plain(policy, ROWS, NUM).logps, rtol=1e-5
  )
  other = jax.jit(lambda *params: score(*params, ROWS, NUM)[1])(
    policy, reference
  )
  np.testing.assert_allclose(
    other.logps, plain(reference, ROWS, NUM).logps, rtol=1e-5
  )


OPTIONS = {'chunked': {'chunk': 7}, 'full': {'full_logits': True}}


@pytest.mark.parametrize('how', OPTIONS)
def test_equal_models_get_equal_scores(how):
  # TDPO's first update: every log-ratio and divergence is 0, not rounding.
  score = scoring.make_pair_score(toy.ToyModel(), ('tilted',), **OPTIONS[how])
  run = jax.jit(lambda p, q, e: score(p, q, ROWS, NUM, None, e))
  policy, reference = run(toy.params(), toy.params(), 0.01)
  np.testing.assert_array_equal(policy.logps, reference.logps)
  for values in (policy.kl, policy.away, policy.toward):
    np.testing.assert_array_equal(values, 0)


@pytest.mark.parametrize('how', [*OPTIONS, 'split'])
def test_tilted_sums_equal_the_brute_force(how):
  options = OPTIONS.get(how) or {
    'chunk': 5,
    'mesh': sharding.make_mesh(data=4, fsdp=2),
  }
  score = scoring.make_pair_score(toy.ToyModel(), ('tilted',), **options)
  policy, reference, epsilon = toy.params(), toy.params(5), 0.3

  def total(params, epsilon):
    scores, _ = score(params, reference, ROWS, NUM, None, epsilon)
    return jnp.sum(scores.away + 2 * scores.toward), scores

  grad = jax.jit(jax.grad(total, has_aux=True))
  for_policy, scores = grad(policy, jnp.float32(epsilon))
  assert not any(np.any(leaf) for leaf in jax.tree.leaves(for_policy))
  exact = [
    {k: v.astype(np.float64) for k, v in p.items()} for p in (policy, reference)
  ]
  own = brute_force(exact[0], ROWS)[0]
  for values, step in ((scores.away, epsilon), (scores.toward, -epsilon)):
    expected = tilted_logps(*exact, step) - own
    np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-4)


def tilted_logps(policy, reference, step):
  """Sums of log softmax(z + step (z - z_ref)) [C], in float64."""
  sums = np.zeros(NUM)
  for r, t in np.argwhere(ROWS.completion_id >= 0):
    token, position = ROWS.tokens[r, t], ROWS.positions[r, t]
    z, z_ref = (
      p['head'] @ (p['embed'][token] + p['pos'][position]) + p['bias']
      for p in (policy, reference)
    )
    z = z + step * (z - z_ref)
    logp = z[ROWS.targets[r, t]] - np.log(np.sum(np.exp(z)))
    sums[ROWS.completion_id[r, t]] += logp
  return sums
