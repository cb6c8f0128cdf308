"""The decoder of every architecture; a DecoderConfig selects among its parts.

Comes in: a DecoderConfig; then parameters and Rows. Goes out: a LanguageModel
of pure functions, whose hidden states scoring.py projects with `head`. Does not
compute logits or losses and reads no files. Nothing outside models/ imports
flax.
"""

import functools
import math
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import ad_checkpoint

from dpo_jax import tree, types
from dpo_jax.models import (
  adapters,
  attention,
  decoder_config,
  experts,
  layers,
  placement,
  rotary,
  stack,
)
from dpo_jax.models.decoder_config import AXES, DecoderConfig, param_dims
from dpo_jax.models.kernels import registry
from dpo_jax.types import Array, Params

# The backward pass of attention recomputes its blocks anyway. Every policy
# keeps its output; otherwise attention would be computed three times.
_KEEP = jax.checkpoint_policies.save_only_these_names('attention')
_save = jax.checkpoint_policies.save_from_both_policies
_KEEP_DOTS = _save(
  _save(_KEEP, jax.checkpoint_policies.dots_with_no_batch_dims_saveable),
  lambda primitive, *_, **params: primitive.name in registry.PRIMITIVES,
)
_REMAT = dict(zip(decoder_config.REMAT, (None, _KEEP, _KEEP_DOTS), strict=True))


class LanguageModel(NamedTuple):
  """A decoder as functions of its parameters; `make_model` documents them."""

  config: DecoderConfig
  init: Callable[[Array], Params]  # key -> float32 nested dict
  hidden: Callable[[Params, types.Rows], tuple[Array, dict[str, Any]]]
  head: Callable[[Params], types.Head]
  # (params, next tokens, cache) -> (states, cache with these tokens)
  decode: Callable[[Params, types.Rows, attention.Cache], Any]
  make_cache: Callable[[int, int], attention.Cache]  # rows, slots per row
  logical_axes: Params  # pytree like params of tuples of axis names
  kernel: registry.Choice


def make_model(
  config: DecoderConfig,
  *,
  compute_dtype: Any = jnp.float32,
  remat: str = 'none',
  attention_block: int = 128,
  kernel: registry.Choice = registry.DENSE,
  unroll: int = 1,
  mesh: Any = None,
) -> LanguageModel:
  """Makes the functions of a decoder.

  `hidden(params, rows)` takes Rows [R, L] and returns the states [R, L, D]
  after the last norm, in `compute_dtype`, and a dict: {'router': RouterSums} if
  layers have experts, else {}. Parameters under 'layers' are stacked over
  layers on axis 0. types.Adapted takes the place of parameters with an adapter.

  `decode(params, rows, cache)` does the same for texts that arrive in parts:
  `rows` holds the tokens that follow those in the cache. prompt_id 0 marks
  padding, branches are ignored. It returns (states, cache with these tokens).

  Args:
    config: shape of the decoder.
    compute_dtype: of matmuls and the residual stream; norms, softmax and
      rotations are float32.
    remat: one of decoder_config.REMAT, what the backward pass recomputes of a
      layer: 'none'; 'full', all except the attention's output; 'dots', all
      except that and the outputs of matmuls with weights.
    attention_block: queries per block of dense attention.
    kernel: what computes attention; `decode` is always dense.
    unroll: layers, or periods of layers of several kinds, per step of the loop
      over layers; 0 = all, and no loop. `decode` always loops.
    mesh: mesh on which rows are split; read by experts and kernels.
  """
  dtype = jnp.dtype(compute_dtype)
  numerics = _Numerics(dtype, remat, attention_block, kernel, unroll, mesh)
  module = _Decoder(config, numerics)

  def hidden(params, rows):
    return module.apply(_variables(params), rows)[:2]

  def head(params):
    params = _variables(params)['params']
    tied = params['embed']['embedding'] if config.tied else None
    return types.Head(
      weight_VD=params['head']['kernel'] if tied is None else tied,
      bias=params['head']['bias'] if config.head_bias else None,
      softcap=config.logit_softcap,
    )

  def decode(params, rows, cache):
    hidden_RLD, _, cache = module.apply(_variables(params), rows, cache)
    return hidden_RLD, cache

  return LanguageModel(
    config=config,
    init=functools.partial(_init, config),
    hidden=hidden,
    head=head,
    decode=decode,
    make_cache=functools.partial(_make_cache, config, numerics.dtype),
    logical_axes=_logical_axes(config),
    kernel=kernel,
  )


def _variables(params: Params | types.Adapted) -> dict[str, Any]:
  """The collections of the decoder; layers may still be with the host."""
  return {
    collection: {
      name: leaves if name == 'layers' else placement.fetch(leaves)
      for name, leaves in values.items()
    }
    for collection, values in adapters.variables(params).items()
  }


def _init(config: DecoderConfig, key: Array) -> Params:
  """Normal matrices of deviation init_scale, biases 0, norms the identity."""
  params = {}
  for name, dims in param_dims(config).items():
    shape = layers.shape(config, dims)
    kind = name.rpartition('/')[2]
    if kind in ('kernel', 'embedding'):
      # By name: a parameter more or less leaves the others' numbers alone.
      own_key = jax.random.fold_in(key, zlib.crc32(name.encode()))
      # As a matrix: bits of rank 3 and up take XLA:CPU four times as long to
      # compile.
      matrix = shape[0], math.prod(shape[1:])
      normal = jax.random.normal(own_key, matrix, jnp.float32).reshape(shape)
      params[name] = config.init_scale * normal
    else:
      value = {'scale': 1.0 - config.norm_offset, 'bias': 0.0}[kind]
      params[name] = jnp.full(shape, value, jnp.float32)
  return tree.unflatten_names(params)


def _make_cache(config, dtype, num_rows, num_slots):
  shape = config.num_layers, num_rows, config.num_kv_heads, num_slots
  return attention.make_cache((*shape, config.head_size), dtype)


def _logical_axes(config):
  dims = param_dims(config)
  return tree.unflatten_names(
    {name: tuple(AXES[d] for d in letters) for name, letters in dims.items()}
  )


class _Numerics(NamedTuple):
  """Choices of computation that leave the maths the same; see make_model."""

  dtype: Any
  remat: str
  attention_block: int
  kernel: registry.Choice
  unroll: int
  mesh: Any = None


class _Decoder(nn.Module):
  """Embedding, layers and last norm.

  The modules read their variables and never create them (`_init` does), so a
  missing or misshapen parameter raises.
  """

  config: DecoderConfig
  numerics: _Numerics

  @nn.compact
  def __call__(self, rows: types.Rows, cache: attention.Cache | None = None):
    config, dtype = self.config, self.numerics.dtype
    is_cached = cache is not None
    # Decoding places its cache; states of one token go where that takes them.
    mesh = None if is_cached else self.numerics.mesh
    x_RLD = layers.Embed(dtype, mesh, name='embed')(rows.tokens)
    if config.scale_embeddings:
      x_RLD *= jnp.asarray(config.width**0.5, dtype)
    if config.learned_positions:
      x_RLD += layers.Embed(dtype, mesh, name='positions')(rows.positions)
    x_RLD = placement.stream(x_RLD, mesh)
    if is_cached:
      cache = attention.announce(cache, rows)
    # Computed once for all layers: a layer picks its kind of rotation.
    shared = _Shared(
      rows,
      rotary.make_tables(config, rows, is_cached),
      None if is_cached else registry.prepare(self.numerics.kernel, rows),
    )
    stacked = {
      name: values['layers']
      for name, values in self.variables.items()
      if 'layers' in values
    }
    carry, router = _run_layers(
      config, self.numerics, shared, stacked, (x_RLD, cache)
    )
    x_RLD, cache = carry
    x_RLD = layers.Norm(config, 'D', name='final_norm')(x_RLD)
    aux = {} if router is None else {'router': router}
    return x_RLD, aux, attention.advance(cache, rows)


class _Shared(NamedTuple):
  """What all layers read besides the residual stream."""

  rows: types.Rows
  tables: Any  # of rotary.make_tables
  plan: Any  # of registry.prepare


class _Kind(NamedTuple):
  """What differs between layers besides their parameters."""

  window: Array | int | None  # positions that a query sees; None = all
  rope: Array | int | None  # kind of rotation; None = the first
  layer: Array | None = None  # its number, for the cache


def _run_layers(config, numerics, shared, stacked, carry):
  """Runs all layers on a carry (residual stream, cache)."""

  def layer(kind, variables, carry):
    # Without a parent: its variables are a slice, not those of the decoder.
    run = _Layer(config, numerics, parent=None)
    return run.apply(placement.fetch(variables), carry, shared, kind)

  policy = _REMAT[numerics.remat]
  unroll = numerics.unroll if carry[1] is None else 1
  # Without a loop between them the compiler would find the forward and its
  # repetition equal, and keep what remat drops.
  remat = functools.partial(
    jax.checkpoint, policy=policy, prevent_cse=unroll == 0
  )
  windows = config.layer_windows or (0,) * config.num_layers
  ropes = config.layer_ropes or (0,) * config.num_layers
  # Kernels need windows that are constants of the program.
  if numerics.kernel.name != 'dense' and carry[1] is None:
    kinds = [
      _Kind(window or None, rope) for window, rope in zip(windows, ropes)
    ]
    if policy is not None:
      layer = remat(layer, static_argnums=0)
    return stack.scan_periods(layer, kinds, stacked, carry, unroll)
  # A window of 0 is no limit, which is here the largest int32.
  unlimited = jnp.iinfo(jnp.int32).max
  windows = jnp.asarray([window or unlimited for window in windows], jnp.int32)
  kinds = _Kind(
    windows if config.layer_windows else None,
    jnp.asarray(ropes, jnp.int32) if config.layer_ropes else None,
    jnp.arange(config.num_layers),
  )
  if policy is not None:
    layer = remat(layer)
  return stack.scan(layer, kinds, stacked, carry, unroll)


class _Layer(nn.Module):
  """Attention and MLP on the residual stream; the body of the scan."""

  config: DecoderConfig
  numerics: _Numerics

  @nn.compact
  def __call__(self, carry, shared, kind):
    config = self.config
    x_RLD, cache = carry
    mesh = self.numerics.mesh if cache is None else None

    def norm(name, x_RLD, wanted):
      return layers.Norm(config, 'D', name=name)(x_RLD) if wanted else x_RLD

    read_RLD = norm('attention_norm', x_RLD, config.pre_norm)
    attend = _Attention(config, self.numerics, name='attention')
    read_RLD = placement.read(read_RLD, mesh)
    out_RLD, cache = attend(read_RLD, shared, kind, cache)
    out_RLD = placement.stream(out_RLD, mesh)
    out_RLD = norm('attention_post_norm', out_RLD, config.post_norm)
    before_RLD, x_RLD = x_RLD, x_RLD + out_RLD
    # A parallel MLP reads the stream before the attention's output is added.
    if not config.shared_norm:
      read_RLD = before_RLD if config.parallel else x_RLD
      read_RLD = norm('mlp_norm', read_RLD, config.pre_norm)
      read_RLD = placement.read(read_RLD, mesh)
    dtype, router = self.numerics.dtype, None
    if config.num_experts:
      mix = experts.Experts(
        config,
        dtype,
        layers.ACTIVATIONS[config.activation],
        self.numerics.mesh,
        name='experts',
      )
      out_RLD, router = mix(read_RLD, shared.rows)
    else:
      out_RLD = layers.Mlp(config, dtype, name='mlp')(read_RLD)
    out_RLD = placement.stream(out_RLD, mesh)
    out_RLD = norm('mlp_post_norm', out_RLD, config.post_norm)
    return (x_RLD + out_RLD, cache), router


class _Attention(nn.Module):
  """Projections, rotary positions, attention under the branch rule."""

  config: DecoderConfig
  numerics: _Numerics

  @nn.compact
  def __call__(self, x_RLD, shared, kind, cache):
    config, dtype = self.config, self.numerics.dtype
    mesh = self.numerics.mesh if cache is None else None
    linear = functools.partial(layers.Linear, dtype)
    bias = config.qkv_bias
    q_RLHK = linear('D', 'HK', bias, name='query')(x_RLD)
    k_RLGK = linear('D', 'GK', bias, name='key')(x_RLD)
    v_RLGK = linear('D', 'GK', bias, name='value')(x_RLD)
    if config.query_key_norm != 'none':
      per_head = config.query_key_norm == 'head'
      q_dims, k_dims = ('K', 'K') if per_head else ('HK', 'GK')
      q_RLHK = layers.Norm(config, q_dims, name='query_norm')(q_RLHK)
      k_RLGK = layers.Norm(config, k_dims, name='key_norm')(k_RLGK)
    if config.ropes:
      index = 0 if kind.rope is None else kind.rope
      cos_RLN, sin_RLN = (table[index] for table in shared.tables)
      pairs = config.rope_interleaved
      q_RLHK = rotary.rotate(q_RLHK, cos_RLN, sin_RLN, pairs)
      k_RLGK = rotary.rotate(k_RLGK, cos_RLN, sin_RLN, pairs)
    options = {
      'block': self.numerics.attention_block,
      'scale': (config.query_scalar or config.head_size) ** -0.5,
      'window': kind.window,
      'softcap': config.attention_softcap,
    }
    if cache is None:
      attend = functools.partial(registry.attend, self.numerics.kernel)
      options['mesh'] = mesh
      qkv = [placement.heads(x, mesh) for x in (q_RLHK, k_RLGK, v_RLGK)]
      out_RLHK = attend(*qkv, shared.rows, shared.plan, **options)
    else:
      cache = attention.write(cache, kind.layer, k_RLGK, v_RLGK)
      attend = attention.cached_attention
      out_RLHK = attend(q_RLHK, cache, kind.layer, shared.rows, **options)
    if not registry.names_output(self.numerics.kernel):
      # The name by which the policies of _REMAT keep the output.
      out_RLHK = ad_checkpoint.checkpoint_name(out_RLHK, 'attention')
    return linear('HK', 'D', config.out_bias, name='out')(out_RLHK), cache
