"""What the published decoder families call things: tables, no code paths.

Comes in: nothing. Goes out: FAMILIES: for each `model_type` of a config.json,
which keys hold the fields of our DecoderConfig, what the family implies, and
where each parameter of decoder.py lies in its safetensors files. A new family
is an entry here. Does not interpret any of it: architectures.py reads the
keys, storage/hf_checkpoint.py the tensors.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple


class Tensor(NamedTuple):
  """Where a parameter lies in the files.

  `axes` are the axes in the file, each a product of dimensions (the key of
  types.py; T positions, 1 a single one): 'HK,D' is a matrix of
  heads times head size by width. Where several parameters share one tensor,
  `fused` has the dimension of each of them along the axis they are joined on,
  and `part` says which is ours.
  """

  name: str  # {i} = the layer, {e} = the expert
  axes: str
  fused: str = ''
  part: int = 0


class Family(NamedTuple):
  """One `model_type`."""

  hf_class: str  # `architectures` of config.json
  tensors: Mapping[str, Tensor]  # parameter of decoder.py -> its tensor
  prefix: str = 'model.'  # of tensors, left out by some published files
  keys: Mapping[str, str] = MappingProxyType({})  # added to KEYS; '' = none
  implies: Mapping[str, Any] = MappingProxyType({})  # field -> value
  absent: Mapping[str, Any] = MappingProxyType({})  # key -> value if absent
  only: Mapping[str, Any] = MappingProxyType({})  # key -> the value we know
  windows: str = 'none'  # which layers: none, all, even, upper, pattern
  experts: bool = False  # in place of each layer's MLP
  # What replaces entries of `tensors` in files that hold its first tensor.
  joined: Mapping[str, Tensor] = MappingProxyType({})


def _linear(path, name, axes, **kwargs):
  """Entries of a kernel and its bias; a file's kernel is [out, in] or back."""
  bias_axes = axes.partition(',')[0]
  return {
    f'{path}/kernel': Tensor(f'{name}.weight', axes, **kwargs),
    f'{path}/bias': Tensor(f'{name}.bias', bias_axes, **kwargs),
  }


def _conv1d(path, name, axes, **kwargs):
  """As GPT-2 stores them: [in, out]."""
  bias_axes = axes.partition(',')[2]
  return {
    f'{path}/kernel': Tensor(f'{name}.weight', axes, **kwargs),
    f'{path}/bias': Tensor(f'{name}.bias', bias_axes, **kwargs),
  }


def _norm(path, name, axes='D'):
  return {
    f'{path}/scale': Tensor(f'{name}.weight', axes),
    f'{path}/bias': Tensor(f'{name}.bias', axes),
  }


_LAYER = 'model.layers.{i}.'
_LLAMA = {
  'embed/embedding': Tensor('model.embed_tokens.weight', 'V,D'),
  **_norm('layers/attention_norm', _LAYER + 'input_layernorm'),
  **_linear('layers/attention/query', _LAYER + 'self_attn.q_proj', 'HK,D'),
  **_linear('layers/attention/key', _LAYER + 'self_attn.k_proj', 'GK,D'),
  **_linear('layers/attention/value', _LAYER + 'self_attn.v_proj', 'GK,D'),
  **_linear('layers/attention/out', _LAYER + 'self_attn.o_proj', 'D,HK'),
  **_norm('layers/attention/query_norm', _LAYER + 'self_attn.q_norm', 'K'),
  **_norm('layers/attention/key_norm', _LAYER + 'self_attn.k_norm', 'K'),
  **_norm('layers/mlp_norm', _LAYER + 'post_attention_layernorm'),
  **_linear('layers/mlp/gate', _LAYER + 'mlp.gate_proj', 'F,D'),
  **_linear('layers/mlp/up', _LAYER + 'mlp.up_proj', 'F,D'),
  **_linear('layers/mlp/down', _LAYER + 'mlp.down_proj', 'D,F'),
  **_norm('final_norm', 'model.norm'),
  'head/kernel': Tensor('lm_head.weight', 'V,D'),
}
_OLMO2 = {
  **_LLAMA,
  **_norm('layers/attention/query_norm', _LAYER + 'self_attn.q_norm', 'HK'),
  **_norm('layers/attention/key_norm', _LAYER + 'self_attn.k_norm', 'GK'),
  **_norm('layers/attention_post_norm', _LAYER + 'post_attention_layernorm'),
  **_norm('layers/mlp_post_norm', _LAYER + 'post_feedforward_layernorm'),
}
_GEMMA2 = {
  **_LLAMA,
  **_norm('layers/attention_post_norm', _LAYER + 'post_attention_layernorm'),
  **_norm('layers/mlp_norm', _LAYER + 'pre_feedforward_layernorm'),
  **_norm('layers/mlp_post_norm', _LAYER + 'post_feedforward_layernorm'),
}
_PHI3_QKV = {'name': _LAYER + 'self_attn.qkv_proj', 'fused': 'HGG'}
_PHI3_MLP = {'name': _LAYER + 'mlp.gate_up_proj', 'fused': 'FF'}
_PHI3 = {
  **_LLAMA,
  **_linear('layers/attention/query', axes='HK,D', part=0, **_PHI3_QKV),
  **_linear('layers/attention/key', axes='GK,D', part=1, **_PHI3_QKV),
  **_linear('layers/attention/value', axes='GK,D', part=2, **_PHI3_QKV),
  **_linear('layers/mlp/gate', axes='F,D', part=0, **_PHI3_MLP),
  **_linear('layers/mlp/up', axes='F,D', part=1, **_PHI3_MLP),
}


def _experts(block, router, gate, up, down):
  """Entries of a layer's experts, each in tensors of its own."""
  expert = f'{_LAYER}{block}.experts.{{e}}'
  return {
    'layers/experts/router/kernel': Tensor(f'{_LAYER}{router}.weight', 'E,D'),
    'layers/experts/gate/kernel': Tensor(f'{expert}.{gate}.weight', 'F,D'),
    'layers/experts/up/kernel': Tensor(f'{expert}.{up}.weight', 'F,D'),
    'layers/experts/down/kernel': Tensor(f'{expert}.{down}.weight', 'D,F'),
  }


_MIXTRAL = _LLAMA | _experts(
  'block_sparse_moe', 'block_sparse_moe.gate', 'w1', 'w3', 'w2'
)
_QWEN3_MOE = _LLAMA | _experts(
  'mlp', 'mlp.gate', 'gate_proj', 'up_proj', 'down_proj'
)
# As transformers 5 holds them in memory; a file may have been saved so.
_GATE_UP = {
  'name': _LAYER + 'mlp.experts.gate_up_proj',
  'axes': 'E,F,D',
  'fused': 'FF',
}
_JOINED = {
  'layers/experts/gate/kernel': Tensor(part=0, **_GATE_UP),
  'layers/experts/up/kernel': Tensor(part=1, **_GATE_UP),
  'layers/experts/down/kernel': Tensor(
    _LAYER + 'mlp.experts.down_proj', 'E,D,F'
  ),
  'layers/experts/router/kernel': Tensor(_LAYER + 'mlp.gate.weight', 'E,D'),
}

_BLOCK = 'transformer.h.{i}.'
_GPT2_QKV = {'name': _BLOCK + 'attn.c_attn', 'fused': 'HGG'}
_GPT2 = {
  'embed/embedding': Tensor('transformer.wte.weight', 'V,D'),
  'positions/embedding': Tensor('transformer.wpe.weight', 'T,D'),
  **_norm('layers/attention_norm', _BLOCK + 'ln_1'),
  **_conv1d('layers/attention/query', axes='D,HK', part=0, **_GPT2_QKV),
  **_conv1d('layers/attention/key', axes='D,GK', part=1, **_GPT2_QKV),
  **_conv1d('layers/attention/value', axes='D,GK', part=2, **_GPT2_QKV),
  **_conv1d('layers/attention/out', _BLOCK + 'attn.c_proj', 'HK,D'),
  **_norm('layers/mlp_norm', _BLOCK + 'ln_2'),
  **_conv1d('layers/mlp/up', _BLOCK + 'mlp.c_fc', 'D,F'),
  **_conv1d('layers/mlp/down', _BLOCK + 'mlp.c_proj', 'F,D'),
  **_norm('final_norm', 'transformer.ln_f'),
  'head/kernel': Tensor('lm_head.weight', 'V,D'),
}
_GPTJ = {
  'embed/embedding': Tensor('transformer.wte.weight', 'V,D'),
  **_norm('layers/attention_norm', _BLOCK + 'ln_1'),
  **_linear('layers/attention/query', _BLOCK + 'attn.q_proj', 'HK,D'),
  **_linear('layers/attention/key', _BLOCK + 'attn.k_proj', 'GK,D'),
  **_linear('layers/attention/value', _BLOCK + 'attn.v_proj', 'GK,D'),
  **_linear('layers/attention/out', _BLOCK + 'attn.out_proj', 'D,HK'),
  **_linear('layers/mlp/up', _BLOCK + 'mlp.fc_in', 'F,D'),
  **_linear('layers/mlp/down', _BLOCK + 'mlp.fc_out', 'D,F'),
  **_norm('final_norm', 'transformer.ln_f'),
  **_linear('head', 'lm_head', 'V,D'),
}
_NEOX_LAYER = 'gpt_neox.layers.{i}.'
_NEOX_QKV = {
  'name': _NEOX_LAYER + 'attention.query_key_value',
  'fused': '111',
}
_NEOX = {
  'embed/embedding': Tensor('gpt_neox.embed_in.weight', 'V,D'),
  **_norm('layers/attention_norm', _NEOX_LAYER + 'input_layernorm'),
  **_linear('layers/attention/query', axes='H1K,D', part=0, **_NEOX_QKV),
  **_linear('layers/attention/key', axes='G1K,D', part=1, **_NEOX_QKV),
  **_linear('layers/attention/value', axes='G1K,D', part=2, **_NEOX_QKV),
  **_linear('layers/attention/out', _NEOX_LAYER + 'attention.dense', 'D,HK'),
  **_norm('layers/mlp_norm', _NEOX_LAYER + 'post_attention_layernorm'),
  **_linear('layers/mlp/up', _NEOX_LAYER + 'mlp.dense_h_to_4h', 'F,D'),
  **_linear('layers/mlp/down', _NEOX_LAYER + 'mlp.dense_4h_to_h', 'D,F'),
  **_norm('final_norm', 'gpt_neox.final_layer_norm'),
  'head/kernel': Tensor('embed_out.weight', 'V,D'),
}

# Fields of DecoderConfig that most families keep under the same keys.
KEYS = {
  'vocab_size': 'vocab_size',
  'width': 'hidden_size',
  'mlp_width': 'intermediate_size',
  'num_layers': 'num_hidden_layers',
  'num_heads': 'num_attention_heads',
  'num_kv_heads': 'num_key_value_heads',
  'head_size': 'head_dim',
  'max_positions': 'max_position_embeddings',
  'norm_eps': 'rms_norm_eps',
  'activation': 'hidden_act',
  'tied': 'tie_word_embeddings',
  'init_scale': 'initializer_range',
}
_GPT2_KEYS = {
  'width': 'n_embd',
  'mlp_width': 'n_inner',
  'num_layers': 'n_layer',
  'num_heads': 'n_head',
  'max_positions': 'n_positions',
  'norm_eps': 'layer_norm_epsilon',
  'activation': 'activation_function',
  'num_kv_heads': '',
  'head_size': '',
}
_ATTENTION_BIAS = {'qkv_bias': 'attention_bias', 'out_bias': 'attention_bias'}
_CAPS = {
  'logit_softcap': 'final_logit_softcapping',
  'attention_softcap': 'attn_logit_softcapping',
  'query_scalar': 'query_pre_attn_scalar',
  'activation': 'hidden_activation',
}
_LAYER_NORM = {'norm': 'layer', 'gated_mlp': False, 'mlp_bias': True}
_GEMMA = {'norm_offset': 1.0, 'scale_embeddings': True}
_GELU = {'hidden_act': 'gelu_pytorch_tanh', 'tie_word_embeddings': True}
_GELU['hidden_activation'] = 'gelu_pytorch_tanh'
_CAUSAL = {'use_bidirectional_attention': False}
_SPARSE = {
  'num_local_experts': 8,
  'num_experts_per_tok': 2,
  'norm_topk_prob': True,
  'router_aux_loss_coef': 0.001,
}

FAMILIES = {
  'llama': Family(
    'LlamaForCausalLM',
    _LLAMA,
    keys=_ATTENTION_BIAS | {'mlp_bias': 'mlp_bias'},
  ),
  'mistral': Family('MistralForCausalLM', _LLAMA, windows='all'),
  'qwen2': Family(
    'Qwen2ForCausalLM', _LLAMA, implies={'qkv_bias': True}, windows='upper'
  ),
  'qwen3': Family(
    'Qwen3ForCausalLM',
    _LLAMA,
    keys=_ATTENTION_BIAS,
    implies={'query_key_norm': 'head'},
    windows='upper',
  ),
  'mixtral': Family(
    'MixtralForCausalLM',
    _MIXTRAL,
    absent=_SPARSE | {'rms_norm_eps': 1e-5, 'rope_theta': 1e6},
    only={'router_jitter_noise': 0.0},
    windows='all',
    experts=True,
    joined=_JOINED,
  ),
  'qwen3_moe': Family(
    'Qwen3MoeForCausalLM',
    _QWEN3_MOE,
    keys=_ATTENTION_BIAS | {'mlp_width': 'moe_intermediate_size'},
    implies={'query_key_norm': 'head'},
    absent=_SPARSE
    | {
      'num_local_experts': 128,
      'num_experts_per_tok': 8,
      'norm_topk_prob': False,
    },
    only={'use_sliding_window': False},
    experts=True,
    joined=_JOINED,
  ),
  'smollm3': Family(
    'SmolLM3ForCausalLM',
    _LLAMA,
    keys=_ATTENTION_BIAS | {'mlp_bias': 'mlp_bias'},
    absent={
      'tie_word_embeddings': True,
      'rope_theta': 2e6,
      'no_rope_layer_interval': 4,
    },
    windows='upper',
  ),
  'olmo2': Family(
    'Olmo2ForCausalLM',
    _OLMO2,
    keys=_ATTENTION_BIAS,
    implies={'query_key_norm': 'all', 'pre_norm': False, 'post_norm': True},
    absent={'rms_norm_eps': 1e-5},
  ),
  'phi3': Family(
    'Phi3ForCausalLM', _PHI3, absent={'rms_norm_eps': 1e-5}, windows='all'
  ),
  'gemma': Family(
    'GemmaForCausalLM',
    _LLAMA,
    keys=_ATTENTION_BIAS,
    implies=_GEMMA | {'activation': 'gelu_tanh'},
    absent=_GELU | {'head_dim': 256},
    only=_CAUSAL,
  ),
  'gemma2': Family(
    'Gemma2ForCausalLM',
    _GEMMA2,
    keys=_ATTENTION_BIAS | _CAPS,
    implies=_GEMMA | {'post_norm': True},
    absent=_GELU
    | {
      'head_dim': 256,
      'query_pre_attn_scalar': 256,
      'attn_logit_softcapping': 50.0,
      'final_logit_softcapping': 30.0,
      'sliding_window': 4096,
    },
    only=_CAUSAL,
    windows='even',
  ),
  'gemma3_text': Family(
    'Gemma3ForCausalLM',
    _GEMMA2,
    keys=_ATTENTION_BIAS | _CAPS,
    implies=_GEMMA | {'post_norm': True, 'query_key_norm': 'head'},
    absent=_GELU
    | {
      'head_dim': 256,
      'query_pre_attn_scalar': 256,
      'sliding_window': 4096,
      'rope_theta': 1e6,
      'rope_local_base_freq': 1e4,
    },
    only=_CAUSAL,
    windows='pattern',
  ),
  'gpt2': Family(
    'GPT2LMHeadModel',
    _GPT2,
    prefix='transformer.',
    keys=_GPT2_KEYS,
    implies=_LAYER_NORM
    | {'qkv_bias': True, 'out_bias': True, 'learned_positions': True},
    absent={'tie_word_embeddings': True, 'activation_function': 'gelu_new'},
    only={
      'scale_attn_by_inverse_layer_idx': False,
      'scale_attn_weights': True,
      'add_cross_attention': False,
    },
  ),
  'gptj': Family(
    'GPTJForCausalLM',
    _GPTJ,
    prefix='transformer.',
    keys=_GPT2_KEYS,
    implies=_LAYER_NORM
    | {
      'parallel': True,
      'shared_norm': True,
      'head_bias': True,
      'rope_interleaved': True,
    },
    absent={'activation_function': 'gelu_new', 'rotary_dim': 64},
    only={'tie_word_embeddings': False},
  ),
  'gpt_neox': Family(
    'GPTNeoXForCausalLM',
    _NEOX,
    prefix='gpt_neox.',
    keys=_ATTENTION_BIAS
    | {
      'parallel': 'use_parallel_residual',
      'norm_eps': 'layer_norm_eps',
      'num_kv_heads': '',
      'head_size': '',
    },
    implies=_LAYER_NORM,
    absent={
      'attention_bias': True,
      'hidden_act': 'gelu',
      'partial_rotary_factor': 0.25,
      'use_parallel_residual': True,
    },
  ),
}
