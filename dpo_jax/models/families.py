"""Published decoder families: config keys, implied values, tensors.

Comes in: nothing. Goes out: FAMILIES. For each `model_type` of a config.json
it has the keys that hold the fields of DecoderConfig, the values that the
family implies, and the table of its tensors. A new architecture is an entry
here, with a table of its own in tensor_tables.py only if its tensors have new
names; no other module tests a family's name. Does not interpret the entries:
architectures.py and layer_patterns.py do.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from dpo_jax.models import tensor_tables
from dpo_jax.models.tensor_tables import Tensor

_NOTHING = MappingProxyType({})


class Family(NamedTuple):
  """One `model_type`.

  The defaults of `absent` are those of the configuration class in transformers,
  which published files leave out.
  """

  hf_class: str  # entry of `architectures` in config.json
  tensors: Mapping[str, Tensor]  # parameter of decoder.py -> its tensor
  prefix: str = 'model.'  # of tensor names; some published files omit it
  keys: Mapping[str, str] = _NOTHING  # field -> key, over KEYS; '' = no key
  implies: Mapping[str, Any] = _NOTHING  # field -> value, whatever the file
  absent: Mapping[str, Any] = _NOTHING  # key -> value if absent
  only: Mapping[str, Any] = _NOTHING  # key -> the one value that is built
  writes: Mapping[str, Any] = _NOTHING  # key -> value, only written
  windows: str = 'none'  # layers with one: none, all, even, upper, pattern
  rope: str = 'parameters'  # rotary keys written: parameters, or rotary_dim
  # Key that is written -> its field; empty = an MLP in place of experts.
  experts: Mapping[str, str] = _NOTHING
  # Entries that replace those of `tensors` in files with experts in one tensor.
  joined: Mapping[str, Tensor] = _NOTHING


# Field of DecoderConfig -> key of config.json, for most families.
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
# Fields that GPT-2, GPT-J and GPT-NeoX share.
_LAYER_NORM = {'norm': 'layer', 'gated_mlp': False, 'mlp_bias': True}
# Gemma stores a norm's scale minus 1.
_GEMMA = {'norm_offset': 1.0, 'scale_embeddings': True}
# Gemma's defaults. Old files say hidden_act, later ones hidden_activation.
_GELU = {
  'hidden_act': 'gelu_pytorch_tanh',
  'hidden_activation': 'gelu_pytorch_tanh',
  'tie_word_embeddings': True,
}
_CAUSAL = {'use_bidirectional_attention': False}
# Defaults of MixtralConfig, which always normalises the chosen experts.
_SPARSE = {
  'num_local_experts': 8,
  'num_experts_per_tok': 2,
  'norm_topk_prob': True,
  'router_aux_loss_coef': 0.001,
}
_EXPERT_KEYS = {
  'num_local_experts': 'num_experts',
  'num_experts_per_tok': 'experts_per_token',
  'router_aux_loss_coef': 'router_aux_coef',
}

FAMILIES = {
  'llama': Family(
    'LlamaForCausalLM',
    tensor_tables.LLAMA,
    keys=_ATTENTION_BIAS | {'mlp_bias': 'mlp_bias'},
  ),
  'mistral': Family('MistralForCausalLM', tensor_tables.LLAMA, windows='all'),
  'qwen2': Family(
    'Qwen2ForCausalLM',
    tensor_tables.LLAMA,
    implies={'qkv_bias': True},
    windows='upper',
  ),
  'qwen3': Family(
    'Qwen3ForCausalLM',
    tensor_tables.LLAMA,
    keys=_ATTENTION_BIAS,
    implies={'query_key_norm': 'head'},
    windows='upper',
  ),
  'mixtral': Family(
    'MixtralForCausalLM',
    tensor_tables.MIXTRAL,
    absent=_SPARSE | {'rms_norm_eps': 1e-5, 'rope_theta': 1e6},
    only={'router_jitter_noise': 0.0},
    windows='all',
    experts=_EXPERT_KEYS,
    joined=tensor_tables.JOINED,
  ),
  'qwen3_moe': Family(
    'Qwen3MoeForCausalLM',
    tensor_tables.QWEN3_MOE,
    keys=_ATTENTION_BIAS | {'mlp_width': 'moe_intermediate_size'},
    implies={'query_key_norm': 'head'},
    absent=_SPARSE
    | {
      'num_local_experts': 128,
      'num_experts_per_tok': 8,
      'norm_topk_prob': False,
    },
    only={'use_sliding_window': False},
    # Every layer has experts; other values are refused by architectures.py.
    writes={'decoder_sparse_step': 1, 'mlp_only_layers': ()},
    experts=_EXPERT_KEYS
    | {'num_experts': 'num_experts', 'norm_topk_prob': 'normalise_experts'},
    joined=tensor_tables.JOINED,
  ),
  'smollm3': Family(
    'SmolLM3ForCausalLM',
    tensor_tables.LLAMA,
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
    tensor_tables.OLMO2,
    keys=_ATTENTION_BIAS,
    implies={'query_key_norm': 'all', 'pre_norm': False, 'post_norm': True},
    absent={'rms_norm_eps': 1e-5},
  ),
  'phi3': Family(
    'Phi3ForCausalLM',
    tensor_tables.PHI3,
    absent={'rms_norm_eps': 1e-5, 'original_max_position_embeddings': 4096},
    windows='all',
  ),
  'gemma': Family(
    'GemmaForCausalLM',
    tensor_tables.LLAMA,
    keys=_ATTENTION_BIAS,
    implies=_GEMMA | {'activation': 'gelu_tanh'},
    absent=_GELU | {'head_dim': 256},
    only=_CAUSAL,
  ),
  'gemma2': Family(
    'Gemma2ForCausalLM',
    tensor_tables.GEMMA2,
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
    tensor_tables.GEMMA2,
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
    tensor_tables.GPT2,
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
    tensor_tables.GPTJ,
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
    rope='rotary_dim',
  ),
  'gpt_neox': Family(
    'GPTNeoXForCausalLM',
    tensor_tables.NEOX,
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
