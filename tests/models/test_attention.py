"""attention: branch rule, blocks, windows, padding."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax import types
from dpo_jax.models import attention

R, L, H, G, K = 2, 24, 4, 2, 8


def make_rows():
  """Two prompts and padding in row 0, one prompt of 3 branches in row 1."""
  prompt_id = np.array([[1] * 12 + [2] * 8 + [0] * 4, [1] * 24], dtype=np.int32)
  branch = np.array(
    [
      [0] * 4 + [1] * 4 + [2] * 4 + [0] * 3 + [1] * 5 + [0] * 4,
      [0] * 9 + [1] * 5 + [2] * 5 + [3] * 5,
    ],
    dtype=np.int32,
  )
  starts = [[0, 4, 4, 0, 3, 0], [0, 9, 9, 9]]
  lengths = [[4, 4, 4, 3, 5, 4], [9, 5, 5, 5]]
  positions = np.array(
    [
      [p for s, n in zip(*row) for p in range(s, s + n)]
      for row in zip(starts, lengths)
    ],
    dtype=np.int32,
  )
  zeros = np.zeros((R, L), np.int32)
  return types.Rows(zeros, positions, prompt_id, branch, zeros, zeros - 1)


@pytest.fixture(scope='module')
def qkv():
  rng = np.random.default_rng(0)
  shapes = (R, L, H, K), (R, L, G, K), (R, L, G, K)
  return tuple(rng.normal(size=s).astype(np.float32) for s in shapes)


def attend(qkv, rows, **options):
  """branch_attention, compiled as one program."""
  window = options.pop('window', None)
  return jax.jit(
    lambda qkv, window: attention.branch_attention(
      *qkv, rows, window=window, **options
    )
  )(qkv, window)


def oracle(q, k, v, rows, scale, window=None, softcap=None):
  """The rule of types.Rows, query by query and key by key, in float64."""
  out = np.zeros(q.shape)
  for r, i, h in itertools.product(range(R), range(L), range(H)):
    if rows.prompt_id[r, i] == 0:
      continue
    keys = [
      j
      for j in range(i + 1)
      if rows.prompt_id[r, j] == rows.prompt_id[r, i]
      and rows.branch[r, j] in (0, rows.branch[r, i])
      and (
        window is None or rows.positions[r, i] - rows.positions[r, j] < window
      )
    ]
    group = h // (H // G)
    scores = np.float64(k[r, keys, group]) @ q[r, i, h] * scale
    if softcap is not None:
      scores = softcap * np.tanh(scores / softcap)
    weights = np.exp(scores - scores.max())
    out[r, i, h] = weights / weights.sum() @ v[r, keys, group]
  return out


@pytest.mark.parametrize(
  'block, options',
  [
    (5, {}),
    (24, {'window': 3}),
    (8, {'softcap': 2.0, 'window': 6}),
    (128, {'softcap': 1.0}),
  ],
)
def test_equals_the_oracle(qkv, block, options):
  rows = make_rows()
  got = attend(qkv, rows, block=block, scale=0.3, **options)
  want = oracle(*qkv, rows, 0.3, **options)
  real = rows.prompt_id > 0
  np.testing.assert_allclose(got[real], want[real], atol=2e-6)


def test_window_may_be_traced(qkv):
  rows = make_rows()
  traced = jax.jit(lambda w: attend(qkv, rows, block=8, scale=0.3, window=w))
  # The largest int32 stands for no window in decoder.py.
  unlimited = attend(qkv, rows, block=8, scale=0.3)
  np.testing.assert_allclose(traced(2**31 - 1), unlimited, atol=2e-6)
  narrow = attend(qkv, rows, block=8, scale=0.3, window=3)
  np.testing.assert_allclose(traced(3), narrow, atol=2e-6)


def test_padding_has_finite_values_and_gradients(qkv):
  rows = make_rows()
  empty = rows._replace(prompt_id=np.zeros((R, L), np.int32))

  def total(qkv, rows):
    out = attention.branch_attention(*qkv, rows, block=8, scale=1.0)
    return jnp.sum(out**2)

  step = jax.jit(jax.value_and_grad(total))
  for each in (rows, empty):
    value, grads = step(qkv, each)
    assert np.isfinite(value)
    assert all(np.isfinite(g).all() for g in grads)


def test_huge_scores_stay_finite(qkv):
  # exp overflows float32 at 88.7, so the highest score must be subtracted.
  q, k, v = qkv
  out = attend((q * 1e3, k * 1e3, v), make_rows(), block=8, scale=1.0)
  assert np.isfinite(out).all()


def test_the_backward_keeps_only_its_inputs(qkv):
  # No scores, weights or masks: nothing grows with L * L or with blocks.
  rows = make_rows()

  def run(qkv):
    return attention.branch_attention(*qkv, rows, block=4, scale=1.0)

  def sizes(qkv):
    residuals = jax.tree.leaves(jax.vjp(run, qkv)[1])
    kept.update({id(x): x.size for x in residuals})
    return 0

  kept = {}
  jax.eval_shape(sizes, qkv)
  rows_size = 4 * R * L  # slots, positions, prompt_id, branch
  assert sum(x.size for x in qkv) <= sum(kept.values())
  assert sum(kept.values()) <= sum(x.size for x in qkv) + rows_size


def test_bfloat16_in_bfloat16_out(qkv):
  rows = make_rows()
  low = [x.astype(jnp.bfloat16) for x in qkv]
  got = attend(low, rows, block=8, scale=0.3)
  want = oracle(*[np.float32(x) for x in low], rows, 0.3)
  assert got.dtype == jnp.bfloat16
  # bfloat16 has 8 bits: half a unit in the last place is 2^-9 of |v| < 4.
  real = rows.prompt_id > 0
  np.testing.assert_allclose(np.float32(got)[real], want[real], atol=2e-2)
