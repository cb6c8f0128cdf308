"""peft_checkpoint: folders out and in again, PEFT's formula, refusals."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
import safetensors.numpy

from dpo_jax import tree, types
from dpo_jax.models import adapter_spec, adapters, architectures
from dpo_jax.models.adapter_spec import AdapterSpec
from dpo_jax.models.decoder_config import DecoderConfig
from dpo_jax.storage import hf_checkpoint, peft_checkpoint
from dpo_jax.types import InputError

FAMILIES = (
  'gemma',
  'gemma2',
  'gemma3_text',
  'gpt2',
  'gpt_neox',
  'gptj',
  'llama',
  'llama3_rope_tied',
  'mistral',
  'mixtral',
  'olmo2',
  'phi3',
  'qwen2',
  'qwen3',
  'qwen3_moe',
  'smollm3',
)
LLAMA = DecoderConfig(
  vocab_size=16,
  width=8,
  mlp_width=24,
  num_layers=2,
  num_heads=4,
  num_kv_heads=2,
  head_size=6,
)
GPT2 = dataclasses.replace(
  LLAMA, family='gpt2', num_kv_heads=4, gated_mlp=False, learned_positions=True
)


def spec_of(config, patterns='', **values):
  targets = adapter_spec.select(patterns, adapter_spec.linears(config))
  return AdapterSpec(**{'rank': 3, 'alpha': 6.0, 'targets': targets} | values)


def noisy(config, spec, seed=0):
  rng = np.random.default_rng(seed)
  return tree.unflatten_names(
    {
      name: rng.normal(size=shape).astype(np.float32)
      for name, shape in adapters.shapes(config, spec).items()
    }
  )


def load(folder, config, spec):
  adapter = noisy(config, spec)
  here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  shardings = jax.tree.map(lambda _: here, adapter)
  return peft_checkpoint.load(folder, config, spec, shardings)


def assert_same(ours, theirs):
  ours, theirs = map(tree.flatten_with_names, (ours, theirs))
  for (name, leaf), (other, expected) in zip(ours, theirs, strict=True):
    assert name == other
    np.testing.assert_array_equal(leaf, expected, err_msg=name)


def merged_by_peft(folder, base, config):
  """PEFT's LoraLayer.get_delta_weight on a folder's tensors, in float64.

  W + scale (B A), transposed where fan_in_fan_out; a module's own rank and
  alpha are those of the patterns that end its name.
  """
  settings = json.loads((folder / 'adapter_config.json').read_text())
  factors = safetensors.numpy.load_file(folder / 'adapter_model.safetensors')
  weights = {k: v.astype(np.float64) for k, v in base.items()}
  for name, a in factors.items():
    if '.lora_A.' not in name:
      continue
    b = factors[name.replace('.lora_A.', '.lora_B.')].astype(np.float64)
    module = name.removeprefix('base_model.model.').removesuffix(
      '.lora_A.weight'
    )
    rank, alpha = settings['r'], settings['lora_alpha']
    for key, value in settings['rank_pattern'].items():
      rank = value if module.endswith(f'.{key}') else rank
    for key, value in settings['alpha_pattern'].items():
      alpha = value if module.endswith(f'.{key}') else alpha
    assert any(module.endswith(f'.{t}') for t in settings['target_modules'])
    assert a.shape[0] == b.shape[1] == rank
    scale = alpha / (rank**0.5 if settings['use_rslora'] else rank)
    delta = scale * (b @ a)
    delta = delta.T if settings['fan_in_fan_out'] else delta
    weights[f'{module}.weight'] = weights[f'{module}.weight'] + delta
  return weights


@pytest.mark.parametrize('family', FAMILIES)
def test_a_folder_is_the_adapter_on_every_family(
  golden_models, tmp_path, family
):
  source = golden_models / family
  config = architectures.from_hf_config(hf_checkpoint.read_config(source))
  spec = spec_of(config, rslora=family in ('gpt2', 'phi3', 'qwen2'))
  adapter = noisy(config, spec)
  peft_checkpoint.save(tmp_path / 'peft', adapter, config, spec)
  assert_same(load(tmp_path / 'peft', config, spec), adapter)
  # And PEFT, which knows the file's modules only, merges to the same weights.
  params = hf_checkpoint.load_params(source, config)
  merged = adapters.merge(types.Adapted(params, adapter, spec.scale))
  hf_checkpoint.save(tmp_path / 'ours', jax.device_get(merged), config)
  hf_checkpoint.save(tmp_path / 'base', jax.device_get(params), config)
  ours, base = (
    safetensors.numpy.load_file(tmp_path / name / 'model.safetensors')
    for name in ('ours', 'base')
  )
  theirs = merged_by_peft(tmp_path / 'peft', base, config)
  changed = 0
  for name, expected in theirs.items():
    np.testing.assert_allclose(ours[name], expected, rtol=1e-5, atol=1e-5)
    changed += not np.array_equal(ours[name], base[name])
  factors = safetensors.numpy.load_file(
    tmp_path / 'peft' / 'adapter_model.safetensors'
  )
  assert 2 * changed == len(factors) > 0


def test_joined_projections_become_one_pair_exactly(tmp_path):
  # c_attn joins query, key and value: rank 3 x 3, B block-diagonal.
  spec = spec_of(GPT2, 'attention')
  peft_checkpoint.save(tmp_path / 'a', noisy(GPT2, spec), GPT2, spec)
  settings = json.loads((tmp_path / 'a' / 'adapter_config.json').read_text())
  assert settings['rank_pattern'] == {'attn.c_attn': 9}
  assert settings['alpha_pattern'] == {'attn.c_attn': 18}
  assert settings['target_modules'] == ['attn.c_attn', 'attn.c_proj']
  assert settings['fan_in_fan_out'] is True
  b = safetensors.numpy.load_file(tmp_path / 'a' / 'adapter_model.safetensors')[
    'base_model.model.transformer.h.0.attn.c_attn.lora_B.weight'
  ]
  blocks = b.reshape(3, 24, 3, 3)
  for i in range(3):
    for j in range(3):
      assert np.any(blocks[i, :, j]) == (i == j)
  # One of the three alone has the adapter's own rank, and 0 elsewhere.
  alone = spec_of(GPT2, 'value')
  adapter = noisy(GPT2, alone)
  peft_checkpoint.save(tmp_path / 'b', adapter, GPT2, alone)
  assert_same(load(tmp_path / 'b', GPT2, alone), adapter)
  with pytest.raises(InputError, match='reaches rows that'):
    load(tmp_path / 'b', GPT2, spec_of(GPT2, 'query'))


def test_a_shared_a_of_joined_projections_loads(tmp_path):
  # As PEFT itself makes it on gpt2: c_attn has one A [r, in] and B [out, r].
  folder, rng = tmp_path / 'peft', np.random.default_rng(0)
  folder.mkdir()
  name = 'base_model.model.transformer.h.{}.attn.c_attn.lora_{}.weight'
  tensors = {}
  for i in range(2):
    tensors[name.format(i, 'A')] = rng.normal(size=(3, 8)).astype(np.float16)
    tensors[name.format(i, 'B')] = rng.normal(size=(72, 3)).astype(np.float16)
  path = folder / 'adapter_model.safetensors'
  safetensors.numpy.save_file(tensors, path)
  settings = {
    'peft_type': 'LORA',
    'r': 3,
    'lora_alpha': 6,
    'target_modules': r'.*\.c_attn',
    'bias': 'none',
  }
  (folder / 'adapter_config.json').write_text(json.dumps(settings))
  spec = spec_of(GPT2, 'query,key,value')
  layer = load(folder, GPT2, spec)['layers']['attention']
  for i in range(2):
    b = tensors[name.format(i, 'B')].astype(np.float32).reshape(3, 4, 6, 3)
    a = tensors[name.format(i, 'A')].astype(np.float32)
    for part, target in enumerate(('query', 'key', 'value')):
      np.testing.assert_array_equal(layer[target]['a'][i], a.T)
      expected = np.moveaxis(b[part], -1, 0)
      np.testing.assert_array_equal(layer[target]['b'][i], expected)


# (changes of adapter_config.json, words of the refusal)
BAD = [
  ({'peft_type': 'IA3'}, "peft_type='IA3' is not supported"),
  ({'use_dora': True}, 'use_dora=True is not supported'),
  ({'bias': 'all'}, "bias='all' is not supported"),
  ({'modules_to_save': ['lm_head']}, 'modules_to_save='),
  ({'init_lora_weights': 'pissa_niter_4'}, 'init_lora_weights='),
  ({'r': 4}, 'fix: --config.adapter.rank=4'),
  ({'lora_alpha': 7}, 'fix: --config.adapter.alpha=7'),
  ({'use_rslora': True}, 'fix: --config.adapter.rslora=True'),
  ({'alpha_pattern': {'self_attn.q_proj': 5}}, 'has rank 3 and scale 1.66667'),
]


@pytest.fixture(scope='module')
def plain(tmp_path_factory):
  folder = tmp_path_factory.mktemp('peft') / 'plain'
  spec = spec_of(LLAMA, 'query,up')
  peft_checkpoint.save(folder, noisy(LLAMA, spec), LLAMA, spec)
  return folder


def refusal(folder, config, spec):
  with pytest.raises(InputError) as error:
    peft_checkpoint.check(folder, config, spec)
  assert '\n' not in str(error.value) and '; fix: ' in str(error.value)
  return str(error.value)


@pytest.mark.parametrize(('changes', 'words'), BAD)
def test_what_is_not_this_adapter_is_one_line(plain, tmp_path, changes, words):
  shutil.copytree(plain, tmp_path / 'peft')
  path = tmp_path / 'peft' / 'adapter_config.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | changes))
  spec = spec_of(LLAMA, 'query,up')
  assert words in refusal(tmp_path / 'peft', LLAMA, spec)


def test_another_shape_other_targets_and_broken_folders(plain, tmp_path):
  spec = spec_of(LLAMA, 'query,up')
  assert peft_checkpoint.check(plain, LLAMA, spec) is None
  wider = dataclasses.replace(LLAMA, width=12)
  line = refusal(plain, wider, spec)
  assert 'q_proj are (3, 8) and (24, 3)' in line and '(3, 12)' in line
  line = refusal(plain, LLAMA, spec_of(LLAMA, 'query,value'))
  assert line.endswith('--config.adapter.targets=attention/query,mlp/up')
  deeper = dataclasses.replace(LLAMA, num_layers=3)
  line = refusal(plain, deeper, spec)
  assert 'layers.2.' in line and line.endswith('an adapter of this base')
  assert 'no such file' in refusal(tmp_path / 'none', LLAMA, spec)
  shutil.copytree(plain, tmp_path / 'peft')
  tensors = tmp_path / 'peft' / 'adapter_model.safetensors'
  tensors.write_bytes(b'no tensors')
  assert 'not a safetensors file' in refusal(tmp_path / 'peft', LLAMA, spec)
  tensors.rename(tmp_path / 'peft' / 'adapter_model.bin')
  assert 'a pickle can run code' in refusal(tmp_path / 'peft', LLAMA, spec)
  (tmp_path / 'peft' / 'adapter_config.json').write_text('[1]')
  assert 'a JSON list, not an object' in refusal(tmp_path / 'peft', LLAMA, spec)


@pytest.mark.parametrize('kind', ['F8_E4M3', 'F8_E8M0', 'I8', 'I64'])
def test_a_tensor_of_another_kind_is_one_line(plain, tmp_path, kind):
  shutil.copytree(plain, tmp_path / 'peft')
  path = tmp_path / 'peft' / 'adapter_model.safetensors'
  data = path.read_bytes()
  end = 8 + int.from_bytes(data[:8], 'little')
  header = json.loads(data[8:end])
  name = max(header.keys() - {'__metadata__'})
  size = header[name]['data_offsets'][1] - header[name]['data_offsets'][0]
  header[name] |= {'dtype': kind, 'shape': [size // (8 if '64' in kind else 1)]}
  text = json.dumps(header).encode()
  path.write_bytes(len(text).to_bytes(8, 'little') + text + data[end:])
  line = refusal(tmp_path / 'peft', LLAMA, spec_of(LLAMA, 'query,up'))
  assert name[:40] in line and f' is {kind}, which is not read' in line


def test_a_folder_that_is_there_is_not_touched(plain):
  before = sorted(path.name for path in plain.parent.iterdir())
  spec = spec_of(LLAMA, 'query,up')
  with pytest.raises(InputError, match='is there already'):
    peft_checkpoint.save(plain, noisy(LLAMA, spec), LLAMA, spec)
  assert sorted(path.name for path in plain.parent.iterdir()) == before
