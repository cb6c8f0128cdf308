"""architectures: config.json in both layouts, there and back, and refusals."""

import json

import published_configs
import pytest
from published_configs import GEMMA2, GPT2, LLAMA, PYTHIA, QWEN3_MOE, read

from dpo_jax.models import architectures, families, presets


def test_both_layouts_are_the_same_decoder():
  old = read(LLAMA)
  assert old == presets.get('llama-3.2-1b')
  rope = LLAMA['rope_scaling'] | {'rope_theta': 500000.0}
  new = {k: v for k, v in LLAMA.items() if not k.startswith('rope')}
  new = new | {'rope_parameters': rope, 'dtype': new.pop('torch_dtype')}
  assert read(new) == old


def _in_the_old_layout(config):
  """Rewrites a config.json of transformers 5 as older releases wrote it."""
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
  # Equal because both were read, not because both were ignored.
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
  assert pythia.parallel and pythia.qkv_bias and not pythia.tied
  assert read(GEMMA2).tied
  qwen = read(LLAMA, model_type='qwen2', sliding_window=9, max_window_layers=8)
  assert qwen.qkv_bias and not qwen.out_bias


def test_experts():
  config = read(QWEN3_MOE)
  assert (config.num_experts, config.experts_per_token) == (128, 8)
  assert config.normalise_experts and config.mlp_width == 768
  assert config.router_aux_coef == 0.001
  # transformers 5 writes num_local_experts for both families.
  new = {k: v for k, v in QWEN3_MOE.items() if k != 'num_experts'}
  assert read(new, num_local_experts=128) == config
  # MixtralConfig's defaults for absent keys: 8 experts, 2 per token.
  mixtral = read(LLAMA, model_type='mixtral', router_aux_loss_coef=0)
  assert (mixtral.num_experts, mixtral.experts_per_token) == (8, 2)
  assert mixtral.normalise_experts and mixtral.router_aux_coef == 0.0
  assert not read({**QWEN3_MOE, 'norm_topk_prob': False}).normalise_experts


@pytest.mark.parametrize('name', families.FAMILIES)
def test_written_and_read_again(name):
  config = read(published_configs.of_family(name))
  written = json.loads(json.dumps(architectures.to_hf_config(config)))
  assert architectures.from_hf_config(written) == config
  assert written['model_type'] == name
  # transformers 5 refuses 256.0 here: its configs are strictly typed.
  assert type(written.get('query_pre_attn_scalar', 1)) is int


@pytest.mark.parametrize(
  'changes, words',
  [
    (
      {'model_type': 'mistrall'},
      ["'mistrall'", "did you mean 'mistral'?", 'gpt2'],
    ),
    ({'model_type': None}, ['model_type None', 'llama']),
    ({'num_key_value_heads': 5}, ['num_key_value_heads = 5', '32 heads']),
    ({'hidden_act': 'xielu'}, ["'xielu'", 'silu']),
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
      {'model_type': 'mixtral', 'router_aux_loss_coef': 10**400},
      ['router_aux_loss_coef = 1000', '>= 0'],
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
      {'model_type': 'gemma', 'use_bidirectional_attention': True},
      ['use_bidirectional_attention = True'],
    ),
  ],
)
def test_refused_in_one_line(changes, words):
  published_configs.assert_refused(changes, words)
