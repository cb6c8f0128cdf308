"""products: which matmuls of a bfloat16 step are not in bfloat16, and why."""

import pytest

from dpo_jax.bench import products

# Matmuls of float32 operands that a bfloat16 step may have, with the reason.
FLOAT32 = {
  # A rounded logit chooses other experts: arXiv:2101.03961, section 2.4.
  'experts': {'router': 4, 'vectors': 2},  # vectors: shares of E experts
}


@pytest.mark.parametrize('kind', products.KINDS)
@pytest.mark.parametrize('chunk', [64, 0])
def test_a_bfloat16_step_multiplies_bfloat16(kind, chunk):
  if chunk == 0 and kind != 'dense':
    return  # the head is the same for all kinds
  options = products.Options(chunk=chunk)
  wide, parts = {}, set()
  for matmul in products.matmuls(products.lower(options, kind)):
    part = products.part_of(matmul)
    parts.add(part)
    if 'f32' in (matmul.left[-3:], matmul.right[-3:]):
      wide[part] = wide.get(part, 0) + 1
    # Logits and the softmax of attention are sums in float32, and so are the
    # gradients of what they are made of.
    if part in ('head', 'attention'):
      assert matmul.out.endswith('xf32'), matmul
  assert wide == FLOAT32.get(kind, {})
  assert parts >= {'head', 'attention', 'linear maps'}
  assert 'other' not in parts


def test_a_float32_step_multiplies_float32():
  table = products.run(products.Options(kinds=('dense',), precision='float32'))
  assert '| dense | head | f32 x f32 | 5 |' in table
  assert 'bf16' not in table
