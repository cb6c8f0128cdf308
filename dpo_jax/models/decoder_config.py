"""The shape of a decoder: everything that decides its parameters and maths.

Comes in: nothing. Goes out: frozen, hashable dataclasses, which decoder.py
builds. Does not know config.json (architectures.py) or names (families.py).
"""

import dataclasses
import math

# Dimension letter (types.py; N layers, T positions) -> logical axis, by which
# sharding.py splits a parameter.
AXES = {
  'N': 'layers',
  'V': 'vocab',
  'D': 'embed',
  'F': 'mlp',
  'E': 'experts',
  'H': 'heads',
  'G': 'kv_heads',
  'K': 'head_dim',
  'T': None,
}
# What the backward pass recomputes of a layer: nothing, everything, or
# everything except matmuls with weights. decoder.py has the policies.
REMAT = ('none', 'full', 'dots')


@dataclasses.dataclass(frozen=True)
class Rope:
  """Rotary frequencies of a layer: theta^(-2i/n), then scaled."""

  theta: float = 10_000.0
  scaling: str = 'default'  # default, linear, llama3, none (no positions)
  factor: float = 1.0  # linear, llama3: low frequencies are divided by it
  low_freq_factor: float = 1.0  # llama3: fewer turns than this = low
  high_freq_factor: float = 4.0  # llama3: more turns than this = high
  original_positions: int = 0  # llama3: the length that turns are counted in

  def frequencies(self, rotary_size: int) -> list[float]:
    """Radians a position, one for each pair of `rotary_size` channels.

    llama3: transformers' `_compute_llama3_parameters`: high frequencies stay,
    low ones are divided by `factor`, and between them it is interpolated.
    """
    pairs = range(rotary_size // 2)
    plain = [self.theta ** (-2 * i / rotary_size) for i in pairs]
    if self.scaling == 'llama3':
      return [self._llama3(f) for f in plain]
    factors = {'default': 1.0, 'linear': 1 / self.factor, 'none': 0.0}
    return [f * factors[self.scaling] for f in plain]

  def _llama3(self, frequency: float) -> float:
    turns = self.original_positions * frequency / (2 * math.pi)
    low, high = self.low_freq_factor, self.high_freq_factor
    stay = min(max((turns - low) / (high - low), 0.0), 1.0)
    return frequency * (stay + (1 - stay) / self.factor)


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
  """Everything that decides a decoder's parameters and its maths."""

  vocab_size: int
  width: int  # of the residual stream, D
  mlp_width: int  # F
  num_layers: int
  num_heads: int
  num_kv_heads: int  # divides num_heads
  head_size: int  # K
  family: str = 'llama'  # model_type: names of tensors and config keys
  max_positions: int = 2048  # what it was trained for; not enforced
  init_scale: float = 0.02  # standard deviation of random weights
  # Embedding and head.
  tied: bool = False  # the head is the embedding
  scale_embeddings: bool = False  # by sqrt(width)
  learned_positions: bool = False  # a table of max_positions
  head_bias: bool = False
  logit_softcap: float | None = None
  # Normalisation.
  norm: str = 'rms'  # rms, layer
  norm_eps: float = 1e-6
  norm_offset: float = 0.0  # added to the scale
  pre_norm: bool = True  # of what attention and MLP read
  post_norm: bool = False  # of what they write
  parallel: bool = False  # the MLP reads what attention read
  shared_norm: bool = False  # and through the same norm
  # Attention.
  qkv_bias: bool = False
  out_bias: bool = False
  query_key_norm: str = 'none'  # none, head (each apart), all (as one vector)
  query_scalar: int | None = None  # scale = query_scalar^-1/2; None: K
  attention_softcap: float | None = None
  layer_windows: tuple[int, ...] = ()  # a layer's window, 0 = all; () = none
  # Rotary positions.
  ropes: tuple[Rope, ...] = (Rope(),)  # () = none
  layer_ropes: tuple[int, ...] = ()  # a layer's index in ropes; () = 0
  rotary_size: int = 0  # channels of a head that turn; 0 = all
  rope_interleaved: bool = False  # channel pairs (2i, 2i + 1)
  # MLP.
  activation: str = 'silu'  # silu, gelu, gelu_tanh, relu
  gated_mlp: bool = True  # down(act(gate x) * up x), or down(act(up x))
  mlp_bias: bool = False
  # Experts in place of each layer's MLP; F is the width of one.
  num_experts: int = 0  # 0 = one MLP
  experts_per_token: int = 0
  normalise_experts: bool = True  # the chosen ones' weights sum to 1
  router_aux_coef: float = 0.0  # of the balance loss, as trained

  @property
  def sizes(self) -> dict[str, int]:
    """Size of each dimension, by its letter (those of `AXES`)."""
    return {
      'N': self.num_layers,
      'V': self.vocab_size,
      'D': self.width,
      'F': self.mlp_width,
      'E': self.num_experts,
      'H': self.num_heads,
      'G': self.num_kv_heads,
      'K': self.head_size,
      'T': self.max_positions,
    }


def param_dims(config: DecoderConfig) -> dict[str, str]:
  """Dimension letters of every parameter of decoder.py, by its name.

  `{'layers/mlp/up/kernel': 'NDF', ...}`: what can be said of parameters
  without making one.
  """
  bias, mlp_bias = config.qkv_bias, config.mlp_bias
  layer = {
    **_linear('attention/query', 'D', 'HK', bias),
    **_linear('attention/key', 'D', 'GK', bias),
    **_linear('attention/value', 'D', 'GK', bias),
    **_linear('attention/out', 'HK', 'D', config.out_bias),
  }
  if config.num_experts:
    layer |= {
      'experts/router/kernel': 'DE',
      'experts/gate/kernel': 'EDF',
      'experts/up/kernel': 'EDF',
      'experts/down/kernel': 'EFD',
    }
  else:
    layer |= _linear('mlp/up', 'D', 'F', mlp_bias)
    layer |= _linear('mlp/down', 'F', 'D', mlp_bias)
    if config.gated_mlp:
      layer |= _linear('mlp/gate', 'D', 'F', mlp_bias)
  if config.query_key_norm != 'none':
    one = config.query_key_norm == 'head'
    layer['attention/query_norm/scale'] = 'K' if one else 'HK'
    layer['attention/key_norm/scale'] = 'K' if one else 'GK'
  norm = {'scale': 'D'} | ({'bias': 'D'} if config.norm == 'layer' else {})
  norms = ['attention_norm'] * config.pre_norm
  norms += ['mlp_norm'] * (config.pre_norm and not config.shared_norm)
  norms += ['attention_post_norm', 'mlp_post_norm'] * config.post_norm
  layer |= {f'{name}/{k}': v for name in norms for k, v in norm.items()}
  out = {'embed/embedding': 'VD'}
  if config.learned_positions:
    out['positions/embedding'] = 'TD'
  out |= {f'layers/{name}': 'N' + dims for name, dims in layer.items()}
  out |= {f'final_norm/{k}': v for k, v in norm.items()}
  if not config.tied:
    out['head/kernel'] = 'VD'
    out |= {'head/bias': 'V'} if config.head_bias else {}
  return out


def _linear(name, into, out, bias):
  biases = {f'{name}/bias': out} if bias else {}
  return {f'{name}/kernel': into + out} | biases
