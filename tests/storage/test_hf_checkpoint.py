"""hf_checkpoint: real and golden weights in, out again, and refusals."""

import dataclasses
import json
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from jax.sharding import NamedSharding, PartitionSpec

from dpo_jax import sharding, tree
from dpo_jax.models import architectures, decoder
from dpo_jax.models.decoder_config import DecoderConfig, param_dims
from dpo_jax.storage import hf_checkpoint
from dpo_jax.storage.hf_companions import Companions
from dpo_jax.types import InputError

CONFIG = DecoderConfig(
  vocab_size=16,
  width=8,
  mlp_width=24,
  num_layers=3,
  num_heads=4,
  num_kv_heads=2,
  head_size=6,
)


def make_params(config, seed=0):
  rng = np.random.default_rng(seed)
  leaves = {
    name: rng.normal(size=[config.sizes[d] for d in dims]).astype(np.float32)
    for name, dims in param_dims(config).items()
  }
  return tree.unflatten_names(leaves)


def assert_same(params, other):
  leaves = dict(tree.flatten_with_names(other))
  for name, leaf in tree.flatten_with_names(params):
    np.testing.assert_array_equal(leaves.pop(name), leaf, err_msg=name)
  assert not leaves


def test_shards_and_their_index(tmp_path):
  params = make_params(CONFIG)
  hf_checkpoint.save(tmp_path / 'm', params, CONFIG, max_shard_bytes=2000)
  index = json.loads((tmp_path / 'm/model.safetensors.index.json').read_text())
  files = sorted(p.name for p in (tmp_path / 'm').glob('*.safetensors'))
  assert len(files) > 3 and set(index['weight_map'].values()) == set(files)
  assert files[0] == f'model-00001-of-{len(files):05d}.safetensors'
  leaves = jax.tree.leaves(params)
  assert index['metadata']['total_size'] == sum(x.nbytes for x in leaves)
  sizes = [(tmp_path / 'm' / f).stat().st_size for f in files]
  assert max(sizes) < 2000 + 2000  # and each has a header
  assert_same(hf_checkpoint.load_params(tmp_path / 'm', CONFIG), params)


OLD = {'num_kv_heads': 4, 'norm': 'layer', 'gated_mlp': False}
LAYOUTS = {
  'llama': {},
  'phi3': {},
  'qwen3_moe': {
    'query_key_norm': 'head',
    'num_experts': 4,
    'experts_per_token': 2,
  },
  'gpt_neox': OLD | {'qkv_bias': True, 'mlp_bias': True},
  'gpt2': OLD | {'qkv_bias': True, 'learned_positions': True, 'ropes': ()},
}


@pytest.mark.parametrize('family', LAYOUTS)
def test_each_device_gets_its_slice(tmp_path, family):
  config = dataclasses.replace(CONFIG, family=family, **LAYOUTS[family])
  params = make_params(config)
  hf_checkpoint.save(tmp_path / 'm', params, config)
  mesh = jax.make_mesh((2, 2, 2), ('layer', 'fsdp', 'tensor'))
  rules = {'D': 'fsdp', 'H': 'tensor', 'G': 'tensor', 'F': 'tensor', 'K': None}
  shardings = tree.unflatten_names(
    {
      name: NamedSharding(mesh, PartitionSpec(*[rules.get(d) for d in dims]))
      for name, dims in param_dims(config).items()
    }
  )
  loaded = hf_checkpoint.load_params(
    tmp_path / 'm', config, shardings=shardings
  )
  assert_same(loaded, params)
  block = loaded['layers']['experts' if config.num_experts else 'mlp']
  kernel = block['up']['kernel']
  assert kernel.sharding.spec[-2:] == ('fsdp', 'tensor')
  assert kernel.addressable_shards[0].data.shape[-2:] == (4, 12)


def rewrite(folder, change, file='model.safetensors'):
  tensors = safetensors.numpy.load_file(folder / file)
  safetensors.numpy.save_file(change(tensors), folder / file)


@pytest.fixture
def saved(tmp_path):
  params = make_params(CONFIG)
  hf_checkpoint.save(tmp_path / 'm', params, CONFIG)
  return tmp_path / 'm', params


def test_other_float_types_become_float32(saved):
  folder, params = saved

  def halve(tensors):
    kinds = (ml_dtypes.bfloat16, np.float16, np.float64)
    return {
      k: v.astype(kinds[i % 3]) for i, (k, v) in enumerate(tensors.items())
    }

  rewrite(folder, halve)
  loaded = hf_checkpoint.load_params(folder, CONFIG)
  for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(loaded)):
    assert b.dtype == np.float32
    # bfloat16 keeps 8 bits: off by 2^-9 of the value at most.
    np.testing.assert_allclose(b, a, rtol=2**-8)


@pytest.mark.parametrize('kind', ['float8_e4m3fn', 'float8_e5m2'])
def test_float8_is_read_a_slice_at_a_time(saved, kind):
  folder, params = saved
  kind = getattr(ml_dtypes, kind)
  rewrite(folder, lambda t: {k: v.astype(kind) for k, v in t.items()})
  mesh = jax.make_mesh((1, 4, 2), ('data', 'fsdp', 'tensor'))
  shardings = sharding.param_shardings(
    mesh, decoder.make_model(CONFIG).logical_axes, params
  )
  loaded = hf_checkpoint.load_params(folder, CONFIG, shardings=shardings)
  want = jax.tree.map(lambda x: x.astype(kind).astype(np.float32), params)
  assert_same(loaded, want)


def test_published_names_without_prefix_and_with_buffers(saved):
  # openai-community/gpt2 has 'h.0.attn.bias' masks and no 'transformer.'.
  folder, params = saved

  def publish(tensors):
    mask = {'layers.0.self_attn.rotary_emb.inv_freq': np.ones(3, np.float32)}
    return {k.removeprefix('model.'): v for k, v in tensors.items()} | mask

  rewrite(folder, publish)
  assert_same(hf_checkpoint.load_params(folder, CONFIG), params)


def test_a_tied_head_must_be_the_embedding(tmp_path, monkeypatch):
  config = dataclasses.replace(CONFIG, tied=True)
  params = make_params(config)
  hf_checkpoint.save(tmp_path / 'm', params, config)
  embedding = 'model.embed_tokens.weight'
  rewrite(tmp_path / 'm', lambda t: t | {'lm_head.weight': t[embedding]})
  assert_same(hf_checkpoint.load_params(tmp_path / 'm', config), params)
  monkeypatch.setattr(hf_checkpoint, '_ROWS', 5)  # 16 are 3 parts and a bit
  last = np.ones((16, 1), np.float32)
  last[-1] = -1
  rewrite(tmp_path / 'm', lambda t: t | {'lm_head.weight': last * t[embedding]})
  with pytest.raises(InputError, match='lm_head.weight differs from.*tie_word'):
    hf_checkpoint.load_params(tmp_path / 'm', config)


@pytest.mark.parametrize('family', ['mixtral', 'qwen3_moe'])
def test_experts_in_one_tensor_are_read_too(tmp_path, family):
  # As transformers 5 holds them: gate_up_proj [E, 2 F, D], gate first, and
  # down_proj [E, D, F]. The files themselves have a tensor an expert.
  experts = {'num_experts': 4, 'experts_per_token': 2}
  config = dataclasses.replace(CONFIG, family=family, **experts)
  params = make_params(config)
  hf_checkpoint.save(tmp_path / 'm', params, config)

  def join(tensors):
    out = {k: v for k, v in tensors.items() if 'experts' not in k}
    ours, block = params['layers']['experts'], 'model.layers.{}.mlp.'
    for i in range(3):
      out.pop(f'model.layers.{i}.block_sparse_moe.gate.weight', None)
      gate, up, down = (ours[k]['kernel'][i] for k in ('gate', 'up', 'down'))
      gate_up = np.concatenate([gate, up], axis=2).transpose(0, 2, 1)
      name = block.format(i)
      out[f'{name}experts.gate_up_proj'] = np.ascontiguousarray(gate_up)
      down = np.ascontiguousarray(down.transpose(0, 2, 1))
      out[f'{name}experts.down_proj'] = down
      router = np.ascontiguousarray(ours['router']['kernel'][i].T)
      out[f'{name}gate.weight'] = router
    return out

  assert_same(hf_checkpoint.load_params(tmp_path / 'm', config), params)
  rewrite(tmp_path / 'm', join)
  assert_same(hf_checkpoint.load_params(tmp_path / 'm', config), params)


def _without(name):
  return lambda t: {k: v for k, v in t.items() if k != name}


DOWN = 'model.layers.1.mlp.down_proj.weight'
WRONG = {
  'missing': (_without(DOWN), [f'tensor {DOWN} is missing, of 30']),
  'many missing': (
    lambda t: {k: v for k, v in t.items() if '.1.' not in k},
    ['model.layers.1.', 'and 6 more are missing'],
  ),
  'untied without a head': (
    _without('lm_head.weight'),
    ['lm_head.weight', 'tie_word_embeddings'],
  ),
  'unexpected': (
    lambda t: t | {'model.layers.3.mlp.up_proj.weight': t[DOWN]},
    ['model.layers.3.mlp.up_proj.weight is unexpected', 'layers'],
  ),
  'misshapen': (
    lambda t: t | {DOWN: np.ascontiguousarray(t[DOWN].T)},
    [f'{DOWN} has shape (24, 8)', 'asks for (8, 24)'],
  ),
  'quantised': (
    lambda t: t | {DOWN: t[DOWN].astype(np.int8)},
    [f'{DOWN} is I8', 'quantised'],
  ),
}


@pytest.mark.parametrize('case', WRONG)
def test_wrong_tensors_are_named(saved, case):
  folder, _ = saved
  change, words = WRONG[case]
  rewrite(folder, change)
  for function in (hf_checkpoint.check, hf_checkpoint.load_params):
    with pytest.raises(InputError) as error:
      function(folder, CONFIG)
    message = str(error.value)
    assert message.startswith(str(folder)) and '\n' not in message
    assert '; fix: ' in message
    assert all(word in message for word in words), message


def _truncate(folder):
  data = (folder / 'model.safetensors').read_bytes()
  (folder / 'model.safetensors').write_bytes(data[:-100])


def _pointer(folder):
  text = 'version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n'
  (folder / 'model.safetensors').write_text(text)


def _pickle(folder):
  weights = folder / 'model.safetensors'
  weights.rename(folder / 'pytorch_model.bin')


def _index(content):
  def write(folder):
    path = folder / 'model.safetensors.index.json'
    path.write_text(json.dumps(content))

  return write


BROKEN = {
  'no folder': (shutil.rmtree, 'no model.safetensors'),
  'truncated': (_truncate, 'not a safetensors file'),
  'git-lfs': (_pointer, 'git lfs pull'),
  'pickle': (_pickle, 'pickled weights.*save_pretrained'),
  'shard missing': (
    _index({'weight_map': {'a': 'x.safetensors'}}),
    'x.safetensors: missing',
  ),
  'no map': (_index({}), 'no weight_map'),
  'index of a list': (_index([]), 'a JSON list, not an object'),
}


@pytest.mark.parametrize('case', BROKEN)
def test_broken_folders_are_refused(saved, case):
  folder, _ = saved
  breaking, words = BROKEN[case]
  breaking(folder)
  with pytest.raises(InputError, match=words) as error:
    hf_checkpoint.load_params(folder, CONFIG)
  assert '\n' not in str(error.value) and '; fix: ' in str(error.value)


@pytest.mark.parametrize('text', [None, '{"a": 1', '[1]', b'\xff\xfe\x00'])
def test_a_bad_config_json_is_refused(tmp_path, text):
  if text is not None:
    data = text if isinstance(text, bytes) else text.encode()
    (tmp_path / 'config.json').write_bytes(data)
  with pytest.raises(InputError, match='config.json: .*; fix: '):
    hf_checkpoint.read_config(tmp_path)


def test_tokenizer_files_go_along(shared, tmp_path):
  source = shared / 'data/models/stories260K'
  config = architectures.from_hf_config(hf_checkpoint.read_config(source))
  params = hf_checkpoint.load_params(source, config)
  source = shutil.copytree(source, tmp_path / 'source')
  tools = 'additional_chat_templates/tool_use.jinja'
  (source / tools).parent.mkdir()
  (source / tools).write_text('{{ tools }}')
  hf_checkpoint.save(
    tmp_path / 'm', params, config, companions=Companions(source)
  )
  for name in ('tokenizer.json', 'tokenizer_config.json', tools):
    assert (tmp_path / 'm' / name).read_bytes() == (source / name).read_bytes()
  mapping = hf_checkpoint.read_config(tmp_path / 'm')
  assert (mapping['bos_token_id'], mapping['eos_token_id']) == (1, 2)
  assert not (tmp_path / 'm/golden.npz').exists()


def test_a_failed_export_leaves_nothing(tmp_path, monkeypatch):
  def full(*args, **kwargs):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(safetensors.numpy, 'save_file', full)
  with pytest.raises(InputError, match='No space left'):
    hf_checkpoint.save(tmp_path / 'm', make_params(CONFIG), CONFIG)
  assert not list(tmp_path.iterdir())


def test_an_export_never_replaces_a_folder(saved):
  folder, params = saved
  before = (folder / 'model.safetensors').read_bytes()
  with pytest.raises(InputError, match='is there already'):
    hf_checkpoint.save(folder, make_params(CONFIG, seed=1), CONFIG)
  assert (folder / 'model.safetensors').read_bytes() == before
  empty = folder.parent / 'empty'
  empty.mkdir()
  hf_checkpoint.save(empty, params, CONFIG)
  assert_same(hf_checkpoint.load_params(empty, CONFIG), params)


def test_a_folder_in_a_bucket(bucket, tmp_path):
  params = make_params(CONFIG)
  hf_checkpoint.save(bucket / 'm', params, CONFIG, max_shard_bytes=2000)
  assert_same(hf_checkpoint.load_params('mem://bkt/m', CONFIG), params)
  mapping = hf_checkpoint.read_config('mem://bkt/m')
  assert architectures.from_hf_config(mapping) == CONFIG
  with pytest.raises(InputError, match='mem://bkt/m: is there already'):
    hf_checkpoint.save('mem://bkt/m', params, CONFIG)
  (bucket / 'm' / '.unfinished').write_bytes(b'')
  with pytest.raises(InputError, match='was never finished'):
    hf_checkpoint.load_params('mem://bkt/m', CONFIG)
