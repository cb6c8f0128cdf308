"""decoder: equal states in any layout, parameters, numerics."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax import tree, types
from dpo_jax.models import decoder, decoder_config
from dpo_jax.models.decoder_config import DecoderConfig, Rope, param_dims

SMALL = DecoderConfig(
  vocab_size=50,
  width=16,
  mlp_width=24,
  num_layers=2,
  num_heads=4,
  num_kv_heads=2,
  head_size=6,
  max_positions=40,
)
VARIANTS = {
  'llama': {},
  'gpt2': {
    'norm': 'layer',
    'gated_mlp': False,
    'mlp_bias': True,
    'qkv_bias': True,
    'out_bias': True,
    'learned_positions': True,
    'ropes': (),
    'activation': 'gelu_tanh',
    'tied': True,
  },
  'gptj': {
    'norm': 'layer',
    'parallel': True,
    'shared_norm': True,
    'gated_mlp': False,
    'head_bias': True,
    'rope_interleaved': True,
    'rotary_size': 4,
    'activation': 'gelu',
  },
  'olmo2': {'query_key_norm': 'all', 'pre_norm': False, 'post_norm': True},
  'gemma3': {
    'norm_offset': 1.0,
    'scale_embeddings': True,
    'post_norm': True,
    'query_key_norm': 'head',
    'layer_windows': (3, 0),
    'layer_ropes': (1, 0),
    'ropes': (Rope(), Rope(theta=100.0)),
    'attention_softcap': 3.0,
    'logit_softcap': 5.0,
    'tied': True,
  },
  'mixtral': {'num_experts': 5, 'experts_per_token': 2},
  'smollm3': {'ropes': (Rope(), Rope(scaling='none')), 'layer_ropes': (0, 1)},
}
PROMPTS = ([3, 9, 4, 11, 7], [8, 2])
ANSWERS = (([5, 6, 1], [12, 13, 14, 15]), ([30, 31], [40]))


def small(name):
  return dataclasses.replace(SMALL, **VARIANTS[name])


def make_params(model):
  """Random everywhere: ones of norms and zeros of biases hide mistakes."""
  rng = np.random.default_rng(0)
  params = jax.eval_shape(model.init, jax.random.key(0))
  return jax.tree.map(
    lambda x: (0.3 * rng.normal(size=x.shape)).astype(np.float32), params
  )


def lone_rows():
  """One prompt and answer per row, right-padded with a token in use."""
  texts = [p + a for p, pair in zip(PROMPTS, ANSWERS) for a in pair]
  shape = len(texts), max(map(len, texts)) + 2
  tokens = np.full(shape, 9, np.int32)
  mask = np.zeros(shape, np.int32)
  for row, text in enumerate(texts):
    tokens[row, : len(text)] = text
    mask[row, : len(text)] = 1
  positions = mask * np.arange(shape[1], dtype=np.int32)
  zeros = np.zeros(shape, np.int32)
  return types.Rows(tokens, positions, mask, zeros, zeros, zeros - 1)


def packed_rows():
  """Both prompts in one row, their answers as branches, as types.Rows."""
  columns = []
  for number, (prompt, answers) in enumerate(zip(PROMPTS, ANSWERS), start=1):
    last = len(prompt) - 1
    columns += [(t, i, number, 0) for i, t in enumerate(prompt[:-1])]
    for branch, answer in enumerate(answers, start=1):
      text = [prompt[-1], *answer[:-1]]
      columns += [(t, last + i, number, branch) for i, t in enumerate(text)]
  columns += [(0, 0, 0, 0)] * 3
  fields = np.array(columns, np.int32).T[:, None]
  zeros = np.zeros(fields.shape[1:], np.int32)
  return types.Rows(*fields, zeros, zeros - 1)


def answers_of_lone(hidden):
  """States of `lone_rows` that predict answers, in their order."""
  pairs = [(p, a) for p, pair in zip(PROMPTS, ANSWERS) for a in pair]
  return jnp.concatenate(
    [
      hidden[row, len(p) - 1 : len(p) - 1 + len(a)]
      for row, (p, a) in enumerate(pairs)
    ]
  )


def answers_of_packed(hidden):
  """States of `packed_rows` that predict answers, in their order."""
  return hidden[0][packed_rows().branch[0] > 0]


@pytest.mark.parametrize('name', ['gpt2', 'mixtral'])
def test_weights_held_in_bfloat16_count_as_their_numbers(name):
  model = decoder.make_model(small(name))
  # Embeddings, biases, norms and routers are read in float32, as ever.
  held = jax.tree.map(lambda x: x.astype(jnp.bfloat16), make_params(model))
  wide = jax.tree.map(lambda x: x.astype(jnp.float32), held)
  states = jax.jit(model.hidden)
  np.testing.assert_array_equal(
    states(held, lone_rows())[0], states(wide, lone_rows())[0]
  )


@pytest.mark.parametrize('name', ['gpt2', 'gptj', 'gemma3'])
def test_packed_rows_equal_lone_sequences(name):
  model = decoder.make_model(small(name))
  params, hidden = make_params(model), jax.jit(model.hidden)
  lone = answers_of_lone(hidden(params, lone_rows())[0])
  packed = answers_of_packed(hidden(params, packed_rows())[0])
  np.testing.assert_allclose(packed, lone, atol=1e-5)
  assert np.abs(lone).max() > 0.1


def test_gradients_do_not_depend_on_packing_padding_remat_or_blocks():
  def grads(rows, pick, **options):
    model = decoder.make_model(SMALL, **options)
    total = lambda p: jnp.sum(jnp.sin(pick(model.hidden(p, rows)[0])))  # noqa: E731
    return jax.jit(jax.grad(total))(make_params(model))

  lone = grads(lone_rows(), answers_of_lone)
  padded = jax.tree.map(
    lambda x: np.concatenate([x, np.zeros_like(x)]), packed_rows()
  )
  packed = grads(padded, answers_of_packed, remat='full', attention_block=8)
  for (leaf, want), got in zip(
    tree.flatten_with_names(lone), jax.tree.leaves(packed)
  ):
    # Gradients through the prompt are summed in another order.
    error = np.abs(got - want).max() / (np.abs(want).max() or 1.0)
    assert error < 1e-5, (leaf, error)


def test_remat_keeps_less():
  kept = {}
  for remat in decoder_config.REMAT:
    model = decoder.make_model(SMALL, remat=remat)

    def sizes(params, model=model, remat=remat):
      run = lambda p: model.hidden(p, lone_rows())[0]  # noqa: E731
      kept[remat] = sum(
        x.size for x in jax.tree.leaves(jax.vjp(run, params)[1])
      )
      return 0

    jax.eval_shape(sizes, make_params(model))
  assert kept['full'] < kept['dots'] < kept['none']


@pytest.mark.parametrize('name', VARIANTS)
def test_parameters_are_those_of_param_dims(name):
  config = small(name)
  model = decoder.make_model(config)
  params = jax.eval_shape(model.init, jax.random.key(0))
  shapes = {k: v.shape for k, v in tree.flatten_with_names(params)}
  assert shapes == {
    k: tuple(config.sizes[d] for d in dims)
    for k, dims in param_dims(config).items()
  }
  assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(params))
  jax.tree.map(
    lambda axes, leaf: None if len(axes) == leaf.ndim else pytest.fail(),
    model.logical_axes,
    params,
    is_leaf=lambda x: isinstance(x, tuple),
  )
  # The modules read these: a missing or misshapen one raises.
  states, aux = jax.eval_shape(model.hidden, params, packed_rows())
  assert states.shape[-1] == config.width
  assert set(aux) == ({'router'} if config.num_experts else set())
  query = model.logical_axes['layers']['attention']['query']['kernel']
  assert query == ('layers', 'embed', 'heads', 'head_dim')


def test_initial_weights():
  config = dataclasses.replace(SMALL, init_scale=0.02, norm_offset=1.0)
  params = jax.jit(decoder.make_model(config).init)(jax.random.key(0))
  kernel = params['layers']['mlp']['up']['kernel']
  # 768 draws: their standard deviation is known to 1 / sqrt(2 * 768) = 2.6 %.
  assert np.std(kernel) == pytest.approx(0.02, rel=0.1)
  assert not np.allclose(kernel[0], kernel[1])
  # A norm begins as the identity: offset 1 + scale 0.
  np.testing.assert_array_equal(params['final_norm']['scale'], 0.0)


def test_compute_dtype():
  low = decoder.make_model(SMALL, compute_dtype=jnp.bfloat16)
  params = make_params(low)
  got, _ = jax.jit(low.hidden)(params, packed_rows())
  full = decoder.make_model(SMALL)
  want, _ = jax.jit(full.hidden)(params, packed_rows())
  assert got.dtype == jnp.bfloat16
  # Two layers of bfloat16 (2^-9 relative per rounding), on states of size 1.
  assert 1e-4 < np.abs(np.float32(got) - want)[0, :-3].max() < 0.2


def test_head():
  untied = decoder.make_model(small('gptj'))
  params = make_params(untied)
  head = untied.head(params)
  np.testing.assert_array_equal(head.weight_VD, params['head']['kernel'])
  assert head.bias.shape == (50,) and head.softcap is None
  tied = decoder.make_model(small('gemma3'))
  params = make_params(tied)
  head = tied.head(params)
  np.testing.assert_array_equal(head.weight_VD, params['embed']['embedding'])
  assert head.bias is None and head.softcap == 5.0
