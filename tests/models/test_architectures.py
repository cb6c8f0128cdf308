"""architectures: config.json in both layouts, and refusals."""

import dataclasses
import json

import pytest

from dpo_jax.models import architectures, families, presets
from dpo_jax.models.decoder_config import Rope, param_dims
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


def read(mapping, **changes):
  return architectures.from_hf_config(mapping | changes)


def test_both_layouts_are_the_same_decoder():
  old = read(LLAMA)
  assert old == presets.get('llama-3.2-1b')
  rope = LLAMA['rope_scaling'] | {'rope_theta': 500000.0}
  new = {k: v for k, v in LLAMA.items() if not k.startswith('rope')}
  new = new | {'rope_parameters': rope, 'dtype': new.pop('torch_dtype')}
  assert read(new) == old


def _in_the_old_layout(config):
  """A config.json of transformers 5, as releases before it wrote it."""
  old = {k: v for k, v in config.items() if k not in ('dtype', 'layer_types')}
  old['torch_dtype'] = config.get('dtype', 'float32')
  ropes = old.pop('rope_parameters', {})
  local = ropes.get('sliding_attention')
  ropes = dict(ropes.get('full_attention', ropes))
  family = config['model_type']
  if local:
    old['rope_local_base_freq'] = local['rope_theta']
  if theta := ropes.pop('rope_theta', None):
    old['rotary_emb_base' if family == 'gpt_neox' else 'rope_theta'] = theta
  if share := ropes.pop('partial_rotary_factor', None):
    name = 'rotary_pct' if family == 'gpt_neox' else 'partial_rotary_factor'
    old[name] = share
  if ropes.get('rope_type', 'default') != 'default':
    old['rope_scaling'] = ropes
  if family == 'qwen3_moe':
    old['num_experts'] = old.pop('num_local_experts')
  return old


@pytest.mark.parametrize('name', families.FAMILIES)
def test_every_family_is_read_in_both_layouts(golden_models, name):
  new = json.loads((golden_models / name / 'config.json').read_text())
  old = _in_the_old_layout(new)
  assert not {'rope_parameters', 'dtype', 'layer_types'} & set(old)
  assert read(old) == read(new)
  # The file does say something, and a scaled rotation says more.
  if ropes := new.get('rope_parameters'):
    theta = ropes.get('full_attention', ropes)['rope_theta']
    assert read(new).ropes[0].theta == theta
    scaling = {'rope_type': 'linear', 'factor': 4.0}
    if 'full_attention' in ropes:
      ropes = ropes | {'full_attention': ropes['full_attention'] | scaling}
    else:
      ropes = ropes | scaling
    scaled = read(new | {'rope_parameters': ropes})
    assert scaled.ropes[0].factor == 4.0
    assert read(_in_the_old_layout(new | {'rope_parameters': ropes})) == scaled
    older = old | {'rope_scaling': {'type': 'linear', 'factor': 4.0}}
    assert read(older) == scaled


def test_what_old_files_leave_out():
  gpt2 = read(GPT2)
  assert gpt2.tied and gpt2.mlp_width == 4 * 1280 and gpt2.ropes == ()
  assert (gpt2.num_kv_heads, gpt2.head_size) == (20, 64)
  pythia = read(PYTHIA)
  assert pythia.rotary_size == 20 and pythia.parallel and pythia.qkv_bias
  assert not pythia.tied
  gemma2 = read(GEMMA2)
  assert gemma2.tied and gemma2.layer_windows == (4096, 0) * 13
  mistral = read(LLAMA, model_type='mistral', sliding_window=4096)
  assert mistral.layer_windows == (4096,) * 16
  qwen = read(LLAMA, model_type='qwen2', sliding_window=9, max_window_layers=8)
  assert qwen.layer_windows == () and qwen.qkv_bias and not qwen.out_bias
  qwen = read(
    LLAMA,
    model_type='qwen2',
    sliding_window=9,
    max_window_layers=8,
    use_sliding_window=True,
  )
  assert qwen.layer_windows == (0,) * 8 + (9,) * 8
  smollm3 = read(LLAMA, model_type='smollm3', num_hidden_layers=4)
  assert smollm3.layer_ropes == (0, 0, 0, 1)
  gemma3 = read(
    GEMMA2,
    model_type='gemma3_text',
    rope_scaling={'type': 'linear', 'factor': 8},
  )
  assert gemma3.layer_windows == ((4096,) * 5 + (0,)) * 4 + (4096,) * 2
  assert gemma3.ropes == (
    Rope(scaling='linear', factor=8.0),
    Rope(theta=10000.0),
  )


def test_experts():
  config = read(QWEN3_MOE)
  assert (config.num_experts, config.experts_per_token) == (128, 8)
  assert config.normalise_experts and config.mlp_width == 768
  assert config.router_aux_coef == 0.001
  # transformers 5 writes num_local_experts for both families.
  new = {k: v for k, v in QWEN3_MOE.items() if k != 'num_experts'}
  assert read(new, num_local_experts=128) == config
  # What the classes' absent keys mean: MixtralConfig 8 of which 2.
  mixtral = read(LLAMA, model_type='mixtral', router_aux_loss_coef=0)
  assert (mixtral.num_experts, mixtral.experts_per_token) == (8, 2)
  assert mixtral.normalise_experts and mixtral.router_aux_coef == 0.0
  assert not read({**QWEN3_MOE, 'norm_topk_prob': False}).normalise_experts


EXTRA = {
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


@pytest.mark.parametrize('name', families.FAMILIES)
def test_written_and_read_again(name):
  config = read(EXTRA.get(name, LLAMA | {'model_type': name}))
  written = json.loads(json.dumps(architectures.to_hf_config(config)))
  assert architectures.from_hf_config(written) == config
  assert written['model_type'] == name
  # transformers 5 refuses 256.0 there: its configs are strictly typed.
  assert type(written.get('query_pre_attn_scalar', 1)) is int


@pytest.mark.parametrize('name', families.FAMILIES)
def test_every_parameter_has_its_tensor(name):
  config = read(EXTRA.get(name, LLAMA | {'model_type': name}))
  config = dataclasses.replace(config, tied=False)
  table = families.FAMILIES[name].tensors
  assert set(param_dims(config)) <= set(table)
  # The file's dimensions are the parameter's, whatever their order.
  for path, dims in param_dims(config).items():
    in_file = table[path].axes.replace(',', '').replace('1', '')
    in_file += 'E' if '{e}' in table[path].name else ''
    assert sorted(in_file) == sorted(dims.removeprefix('N')), path


@pytest.mark.parametrize(
  'changes, words',
  [
    (
      {'model_type': 'mistrall'},
      ["'mistrall'", "did you mean 'mistral'?", 'gpt2'],
    ),
    ({'model_type': None}, ['model_type None', 'llama']),
    ({'hidden_size': None}, ["'hidden_size' is missing"]),
    ({'hidden_size': '2048'}, ["hidden_size = '2048'", 'positive integer']),
    ({'num_hidden_layers': 0}, ['num_hidden_layers = 0']),
    ({'num_attention_heads': True}, ['num_attention_heads = True']),
    ({'rms_norm_eps': -1.0}, ['rms_norm_eps = -1.0', 'positive number']),
    ({'rope_theta': 'big'}, ["rope_theta = 'big'"]),
    ({'tie_word_embeddings': 'no'}, ["tie_word_embeddings = 'no'", 'true']),
    ({'num_key_value_heads': 5}, ['num_key_value_heads = 5', '32 heads']),
    ({'hidden_act': 'xielu'}, ["'xielu'", 'silu']),
    ({'rope_scaling': {'type': 'yarn'}}, ["'yarn'", 'llama3']),
    ({'rope_scaling': [1]}, ['rope_scaling = [1]', 'object']),
    ({'rope_scaling': {'rope_type': 'llama3'}}, ["'factor' is missing"]),
    ({'head_dim': None, 'num_attention_heads': 24}, ['24 heads', 'head_dim']),
    ({'quantization_config': {'bits': 4}}, ['quantization_config']),
    (
      QWEN3_MOE | {'mlp_only_layers': [0]},
      ['decoder_sparse_step = 1', 'mlp_only_layers = [0]', 'some layers only'],
    ),
    (QWEN3_MOE | {'decoder_sparse_step': 2}, ['decoder_sparse_step = 2']),
    (
      {'model_type': 'mixtral', 'num_experts_per_tok': 9},
      ['num_experts_per_tok = 9', 'at most the 8'],
    ),
    (
      {'model_type': 'mixtral', 'router_aux_loss_coef': -1},
      ['router_aux_loss_coef = -1', '>= 0'],
    ),
    (
      {'model_type': 'mixtral', 'router_jitter_noise': 0.1},
      ['router_jitter_noise = 0.1'],
    ),
    (
      {'model_type': 'mistral', 'sliding_window': 4, 'layer_types': ['x']},
      ["layer_types = ['x']", 'each layer'],
    ),
    ({'model_type': 'mistral', 'sliding_window': -4}, ['sliding_window = -4']),
    (
      {'model_type': 'gemma', 'use_bidirectional_attention': True},
      ['use_bidirectional_attention = True'],
    ),
  ],
)
def test_refused_in_one_line(changes, words):
  mapping = {k: v for k, v in (LLAMA | changes).items() if v is not None}
  with pytest.raises(InputError) as error:
    architectures.from_hf_config(mapping, where='m/config.json')
  message = str(error.value)
  assert message.startswith('m/config.json: ') and '; fix: ' in message
  assert '\n' not in message
  for word in words:
    assert word in message
