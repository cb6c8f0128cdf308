"""Shape of a decoder: every choice that decides its parameters and its maths.

Comes in: nothing. Goes out: frozen, hashable dataclasses, from which decoder.py
builds a model. Does not read config.json (architectures.py) and does not know
the names of published families (families.py). Imports no jax.
"""

import dataclasses
import math
from collections.abc import Collection

# Dimension letter (see types.py; here also N layers, T positions) -> logical
# axis. sharding.py maps logical axes to mesh axes; None is never split.
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
# What computes attention; 'auto' takes the best that fits the device.
# kernels/registry.py has them.
ATTENTION = (
  'auto',
  'dense',
  'blocks',
  'triton',
  'cudnn',
  'splash',
  'fa4',
  'tokamax',
)


@dataclasses.dataclass(frozen=True)
class Rope:
  """Rotary frequencies of a layer: theta^(-2i/n), then scaled.

  Source: Su et al. 2021, arXiv:2104.09864, section 3.2.2. The kinds of scaling
  give what transformers computes (modeling_rope_utils.py).
  """

  theta: float = 10_000.0
  # default, linear, llama3, yarn, longrope, dynamic, none (no positions)
  scaling: str = 'default'
  factor: float = 1.0  # linear, llama3, yarn: divides (low) frequencies
  low_freq_factor: float = 1.0  # llama3: fewer turns than this = low
  high_freq_factor: float = 4.0  # llama3: more turns than this = high
  # llama3, yarn: length over which turns are counted. longrope, dynamic: longer
  # texts have other frequencies than shorter ones.
  original_positions: int = 0
  attention_factor: float = 1.0  # yarn, longrope: on cosine and sine
  beta_fast: float = 32.0  # yarn: more turns than this = high
  beta_slow: float = 1.0  # yarn: fewer turns than this = low
  truncate: bool = True  # yarn: the two bounds are rounded to channel pairs
  short_factors: tuple[float, ...] = ()  # longrope: per channel pair
  long_factors: tuple[float, ...] = ()  # longrope: of longer texts

  @property
  def by_length(self) -> bool:
    """Whether texts above original_positions have frequencies of their own."""
    return self.scaling in ('longrope', 'dynamic')

  def frequencies(
    self, rotary_size: int, *, is_long: bool = False
  ) -> list[float]:
    """Returns radians per position, one for each pair of channels.

    llama3: high frequencies stay, low ones are divided by `factor`, and those
    between are interpolated. Those of a long text under 'dynamic' depend on its
    length: see `rotary.dynamic_frequencies`.

    Args:
      rotary_size: n, rotated channels of a head.
      is_long: longrope: of texts above original_positions.
    """
    pairs = range(rotary_size // 2)
    plain = [self.theta ** (-2 * i / rotary_size) for i in pairs]
    if self.scaling == 'llama3':
      return [self._llama3(f) for f in plain]
    if self.scaling == 'yarn':
      return self._yarn(plain, rotary_size)
    if self.scaling == 'longrope':
      factors = self.long_factors if is_long else self.short_factors
      return [f / factor for f, factor in zip(plain, factors, strict=True)]
    factors = {'linear': 1 / self.factor, 'none': 0.0}
    return [f * factors.get(self.scaling, 1.0) for f in plain]

  def _llama3(self, frequency: float) -> float:
    # Full turns that a channel pair makes over the original context length.
    turns = self.original_positions * frequency / (2 * math.pi)
    low, high = self.low_freq_factor, self.high_freq_factor
    unscaled = min(max((turns - low) / (high - low), 0.0), 1.0)
    return frequency * (unscaled + (1 - unscaled) / self.factor)

  def _yarn(self, plain: list[float], rotary_size: int) -> list[float]:
    """Peng et al. 2023, arXiv:2309.00071, section 3.2, over channel pairs."""
    low, high = (self._pair_of(t, rotary_size) for t in self._betas)
    if self.truncate:
      low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rotary_size - 1)
    high += 0.001 if low == high else 0  # no division by 0
    out = []
    for i, frequency in enumerate(plain):
      scaled = min(max((i - low) / (high - low), 0.0), 1.0)
      out.append(frequency * (1 - scaled + scaled / self.factor))
    return out

  @property
  def _betas(self) -> tuple[float, float]:
    return self.beta_fast, self.beta_slow

  def _pair_of(self, turns: float, rotary_size: int) -> float:
    """The channel pair, as a fraction, that makes so many turns."""
    length = self.original_positions / (turns * 2 * math.pi)
    return rotary_size * math.log(length) / (2 * math.log(self.theta))


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
  """Every choice that decides a decoder's parameters and its maths."""

  vocab_size: int
  width: int  # D, of the residual stream
  mlp_width: int  # F, of one MLP or one expert
  num_layers: int
  num_heads: int
  num_kv_heads: int  # divides num_heads
  head_size: int  # K, channels
  family: str = 'llama'  # model_type: names of tensors and config keys
  max_positions: int = 2048  # trained context length, tokens; not enforced
  init_scale: float = 0.02  # standard deviation of random weights
  # Embedding and head.
  tied: bool = False  # the head is the transposed embedding
  scale_embeddings: bool = False  # multiplied by sqrt(width)
  learned_positions: bool = False  # embedding table of max_positions rows
  head_bias: bool = False
  logit_softcap: float | None = None  # c: logits are c tanh(logits / c)
  # Normalisation.
  norm: str = 'rms'  # rms, layer
  norm_eps: float = 1e-6
  norm_offset: float = 0.0  # added to the scale; gemma stores scale - 1
  pre_norm: bool = True  # normalises the inputs of attention and MLP
  post_norm: bool = False  # normalises their outputs
  parallel: bool = False  # the MLP reads the attention's input
  shared_norm: bool = False  # the MLP reads through the attention's norm
  # Attention.
  qkv_bias: bool = False
  out_bias: bool = False
  query_key_norm: str = 'none'  # none, head (each head), all (all heads)
  query_scalar: int | None = None  # scale = query_scalar^-1/2; None = K
  attention_softcap: float | None = None  # c: scores are c tanh(scores / c)
  # Per layer: positions that a query sees, its own included; 0 or () = all.
  layer_windows: tuple[int, ...] = ()
  # Rotary positions.
  ropes: tuple[Rope, ...] = (Rope(),)  # kinds of rotation; () = none
  layer_ropes: tuple[int, ...] = ()  # per layer: index in ropes; () = 0
  rotary_size: int = 0  # rotated channels of a head; 0 = all
  rope_interleaved: bool = False  # pairs (2i, 2i + 1), else (i, i + n/2)
  # MLP.
  activation: str = 'silu'  # silu, gelu, gelu_tanh, relu
  gated_mlp: bool = True  # down(act(gate x) * up x), or down(act(up x))
  mlp_bias: bool = False
  # Experts in place of each layer's MLP.
  num_experts: int = 0  # E; 0 = one MLP
  experts_per_token: int = 0
  normalise_experts: bool = True  # weights of the chosen experts sum to 1
  router_aux_coef: float = 0.0  # weight of the balance loss in pre-training

  @property
  def sizes(self) -> dict[str, int]:
    """Size of each dimension by its letter, for all letters of `AXES`."""
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


def differences(
  before: DecoderConfig, now: DecoderConfig, ignored: Collection[str] = ()
) -> list[str]:
  """Returns a line per field in which two configs differ, with both values."""
  old, new = dataclasses.asdict(before), dataclasses.asdict(now)
  return [
    f'{key} is {value!r} there and {new[key]!r} now'
    for key, value in old.items()
    if value != new[key] and key not in ignored
  ]


def param_dims(config: DecoderConfig) -> dict[str, str]:
  """Dimension letters of every parameter of decoder.py, by its name.

  Example: `{'layers/mlp/up/kernel': 'NDF', ...}`. Shapes and counts follow
  from it without making an array. A kernel's input dimensions come first.
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
    per_head = config.query_key_norm == 'head'
    layer['attention/query_norm/scale'] = 'K' if per_head else 'HK'
    layer['attention/key_norm/scale'] = 'K' if per_head else 'GK'
  norm = {'scale': 'D'} | ({'bias': 'D'} if config.norm == 'layer' else {})
  # A list times a bool: the names if the flag is set, else none.
  norms = ['attention_norm'] * config.pre_norm
  norms += ['mlp_norm'] * (config.pre_norm and not config.shared_norm)
  norms += ['attention_post_norm', 'mlp_post_norm'] * config.post_norm
  layer |= {f'{name}/{k}': v for name in norms for k, v in norm.items()}
  out = {'embed/embedding': 'VD'}
  if config.learned_positions:
    out['positions/embedding'] = 'TD'
  # All layers of one parameter are stacked in one array.
  out |= {f'layers/{name}': 'N' + dims for name, dims in layer.items()}
  out |= {f'final_norm/{k}': v for k, v in norm.items()}
  if not config.tied:
    out['head/kernel'] = 'VD'
    out |= {'head/bias': 'V'} if config.head_bias else {}
  return out


def _linear(name, into, out, bias):
  biases = {f'{name}/bias': out} if bias else {}
  return {f'{name}/kernel': into + out} | biases
