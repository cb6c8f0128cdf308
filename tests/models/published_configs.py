"""config.json of published models, one for every family, and their refusals."""

import pytest

from dpo_jax.models import architectures
from dpo_jax.types import InputError

# meta-llama/Llama-3.2-1B, config.json as published (older layout).
LLAMA = {
  'architectures': ['LlamaForCausalLM'],
  'attention_bias': False,
  'head_dim': 64,
  'hidden_act': 'silu',
  'hidden_size': 2048,
  'initializer_range': 0.02,
  'intermediate_size': 8192,
  'max_position_embeddings': 131072,
  'mlp_bias': False,
  'model_type': 'llama',
  'num_attention_heads': 32,
  'num_hidden_layers': 16,
  'num_key_value_heads': 8,
  'rms_norm_eps': 1e-05,
  'rope_scaling': {
    'factor': 32.0,
    'high_freq_factor': 4.0,
    'low_freq_factor': 1.0,
    'original_max_position_embeddings': 8192,
    'rope_type': 'llama3',
  },
  'rope_theta': 500000.0,
  'tie_word_embeddings': True,
  'torch_dtype': 'bfloat16',
  'vocab_size': 128256,
}
# openai-community/gpt2-large and EleutherAI/pythia-2.8b, keys that matter.
GPT2 = {
  'activation_function': 'gelu_new',
  'layer_norm_epsilon': 1e-05,
  'model_type': 'gpt2',
  'n_ctx': 1024,
  'n_embd': 1280,
  'n_head': 20,
  'n_layer': 36,
  'n_positions': 1024,
  'vocab_size': 50257,
}
PYTHIA = {
  'hidden_act': 'gelu',
  'hidden_size': 2560,
  'intermediate_size': 10240,
  'layer_norm_eps': 1e-05,
  'max_position_embeddings': 2048,
  'model_type': 'gpt_neox',
  'num_attention_heads': 32,
  'num_hidden_layers': 32,
  'rotary_emb_base': 10000,
  'rotary_pct': 0.25,
  'tie_word_embeddings': False,
  'use_parallel_residual': True,
  'vocab_size': 50304,
}
# google/gemma-2-2b: windows by rule, no layer_types.
GEMMA2 = {
  'attn_logit_softcapping': 50.0,
  'final_logit_softcapping': 30.0,
  'head_dim': 256,
  'hidden_activation': 'gelu_pytorch_tanh',
  'hidden_size': 2304,
  'intermediate_size': 9216,
  'model_type': 'gemma2',
  'num_attention_heads': 8,
  'num_hidden_layers': 26,
  'num_key_value_heads': 4,
  'query_pre_attn_scalar': 256,
  'rms_norm_eps': 1e-06,
  'rope_theta': 10000.0,
  'sliding_window': 4096,
  'vocab_size': 256000,
}
# Qwen/Qwen3-30B-A3B as published (older layout); the rest is as in LLAMA.
QWEN3_MOE = {
  'attention_bias': False,
  'decoder_sparse_step': 1,
  'head_dim': 128,
  'hidden_act': 'silu',
  'hidden_size': 2048,
  'initializer_range': 0.02,
  'intermediate_size': 6144,
  'max_position_embeddings': 40960,
  'max_window_layers': 48,
  'mlp_only_layers': [],
  'model_type': 'qwen3_moe',
  'moe_intermediate_size': 768,
  'norm_topk_prob': True,
  'num_attention_heads': 32,
  'num_experts': 128,
  'num_experts_per_tok': 8,
  'num_hidden_layers': 48,
  'num_key_value_heads': 4,
  'rms_norm_eps': 1e-06,
  'rope_scaling': None,
  'rope_theta': 1000000.0,
  'router_aux_loss_coef': 0.001,
  'sliding_window': None,
  'tie_word_embeddings': False,
  'torch_dtype': 'bfloat16',
  'use_sliding_window': False,
  'vocab_size': 151936,
}

_OTHERS = {
  'llama': LLAMA,
  'gpt2': GPT2,
  'gptj': GPT2 | {'model_type': 'gptj', 'rotary_dim': 32},
  'gpt_neox': PYTHIA,
  'gemma2': GEMMA2,
  'gemma3_text': GEMMA2 | {'model_type': 'gemma3_text'},
  'mixtral': LLAMA | {'model_type': 'mixtral'},
  'qwen3_moe': QWEN3_MOE,
  'smollm3': LLAMA | {'model_type': 'smollm3', 'use_sliding_window': True},
}


def of_family(name):
  """The config.json of a published model of the family, or one made up."""
  return _OTHERS.get(name, LLAMA | {'model_type': name})


def read(mapping, **changes):
  """The decoder of a config.json with some keys changed."""
  return architectures.from_hf_config(mapping | changes)


def assert_refused(changes, words):
  """Asserts that LLAMA with these changes is refused, on one line.

  Args:
    changes: keys to change; None removes a key.
    words: texts that the message must contain.
  """
  mapping = {k: v for k, v in (LLAMA | changes).items() if v is not None}
  with pytest.raises(InputError) as error:
    architectures.from_hf_config(mapping, where='m/config.json')
  message = str(error.value)
  assert message.startswith('m/config.json: ') and '; fix: ' in message
  assert '\n' not in message
  for word in words:
    assert word in message
