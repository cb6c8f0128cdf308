"""initial_weights.py: a model from a Hugging Face folder or from a run."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from dpo_jax import tree
from dpo_jax.models import adapters, decoder, quantized
from dpo_jax.models.adapter_spec import AdapterSpec
from dpo_jax.models.decoder_config import DecoderConfig, param_dims
from dpo_jax.storage import (
  checkpoints,
  hf_checkpoint,
  initial_weights,
  peft_checkpoint,
  run_dir,
  state_items,
)
from dpo_jax.types import Adapted, InputError

CONFIG = DecoderConfig(
  vocab_size=16,
  width=8,
  mlp_width=24,
  num_layers=2,
  num_heads=4,
  num_kv_heads=2,
  head_size=6,
)
FIRST = jax.sharding.SingleDeviceSharding(jax.devices()[0])


def make_params(seed=0):
  rng = np.random.default_rng(seed)
  leaves = {
    name: rng.normal(size=[CONFIG.sizes[d] for d in dims]).astype(np.float32)
    for name, dims in param_dims(CONFIG).items()
  }
  return tree.unflatten_names(leaves)


def make_run(folder, *, tokenizer='', init_from='', **adapter):
  """A run directory that trained a model of CONFIG, without checkpoints."""
  config = {
    'tokenizer': tokenizer,
    'seed': 3,
    'model': {'init_from': init_from},
    'adapter': {'rank': 0} | adapter,
  }
  run_dir.RunDir(folder).create_or_continue(config)
  initial_weights.record(folder, CONFIG)
  return str(folder)


def save_step(folder, step, params):
  with checkpoints.Checkpoints(folder / 'checkpoints') as saver:
    saver.save(step, {state_items.POLICY: params, 'rng': {'x': 1}}, {})


def load(folder, config=CONFIG, **options):
  abstract = {
    name: jax.ShapeDtypeStruct(
      tuple(config.sizes[d] for d in dims), np.float32, sharding=FIRST
    )
    for name, dims in param_dims(config).items()
  }
  abstract = tree.unflatten_names(abstract)
  shardings = jax.tree.map(lambda _: FIRST, abstract)
  return initial_weights.load(folder, config, shardings, abstract, **options)


def assert_same(params, other):
  assert tree.fingerprint(params) == tree.fingerprint(other)


def test_a_hugging_face_folder(tmp_path):
  folder = str(tmp_path / 'hf')
  hf_checkpoint.save(folder, make_params(), CONFIG)
  assert initial_weights.read_config(folder) == CONFIG
  initial_weights.check(folder, CONFIG)
  assert_same(load(folder), make_params())
  assert initial_weights.tokenizer_of(folder) == folder


def test_a_run_gives_its_newest_sound_checkpoint(tmp_path, capsys):
  folder = make_run(tmp_path / 'run')
  assert initial_weights.read_config(folder) == CONFIG
  initial_weights.check(folder, CONFIG)
  with pytest.raises(InputError, match='no checkpoint; fix: let it train'):
    load(folder)
  for step in (1, 2):
    save_step(tmp_path / 'run', step, make_params(step))
  assert_same(load(folder), make_params(2))
  (tmp_path / 'run/checkpoints/2/meta/metadata').write_text('{}')
  assert_same(load(folder), make_params(1))
  assert '2: skipped' in capsys.readouterr().out


SPEC = AdapterSpec(2, 8.0, ('attention/query', 'mlp/down'))


def make_adapter(seed=0):
  rng = np.random.default_rng(seed)
  return tree.unflatten_names(
    {
      name: rng.normal(size=shape).astype(np.float32)
      for name, shape in adapters.shapes(CONFIG, SPEC).items()
    }
  )


def assert_merged(params, base):
  """Asserts that the parameters are W + 4 A B on SPEC's targets, else W."""
  leaves, adapter = (
    dict(tree.flatten_with_names(part)) for part in (base, make_adapter())
  )
  for name, leaf in tree.flatten_with_names(params):
    expected = np.float64(leaves[name])
    target = name.removesuffix('kernel')
    if f'{target}a' in adapter:
      a, b = np.float64(adapter[f'{target}a']), adapter[f'{target}b']
      product = [np.tensordot(x, y, 1) for x, y in zip(a, np.float64(b))]
      expected = expected + 4 * np.array(product)
      assert np.abs(4 * np.array(product)).max() > 1
    np.testing.assert_allclose(leaf, expected, rtol=1e-5, atol=1e-5)


def lora_run(folder, **values):
  """A run that trained make_adapter()."""
  choices = {'rank': 2, 'alpha': 8.0, 'targets': 'query,down'}
  run = make_run(folder, **choices | values)
  save_step(folder, 1, make_adapter())
  return run


def test_a_run_of_an_adapter_is_its_merged_weights(tmp_path):
  hf_checkpoint.save(tmp_path / 'hf', make_params(), CONFIG)
  run = lora_run(tmp_path / 'run', init_from=f'{tmp_path}/hf')
  initial_weights.check(run, CONFIG)
  assert_merged(load(run), make_params())
  # A run on a run, on random weights of a seed, and on a rounded base.
  make_run(tmp_path / 'full')
  save_step(tmp_path / 'full', 4, make_params(1))
  on_a_run = lora_run(tmp_path / 'b', init_from=f'{tmp_path}/full')
  assert_merged(load(on_a_run), make_params(1))
  init = decoder.make_model(CONFIG).init
  assert_merged(
    load(lora_run(tmp_path / 'c')), jax.jit(init)(jax.random.key(3))
  )
  rounded = lora_run(tmp_path / 'd', init_from=f'{tmp_path}/hf', base='int8')
  base = quantized.quantize(make_params(), kind='int8')
  assert_merged(load(rounded), adapters.merge(Adapted(base, None)))


def save_peft(folder, base):
  peft_checkpoint.save(folder, make_adapter(), CONFIG, SPEC, base=str(base))
  return str(folder)


def test_a_peft_folder_is_its_merged_weights(tmp_path, monkeypatch):
  hf_checkpoint.save(tmp_path / 'hf', make_params(), CONFIG)
  folder = save_peft(tmp_path / 'peft', tmp_path / 'hf')
  assert initial_weights.read_config(folder) == CONFIG
  initial_weights.check(folder, CONFIG)
  assert_merged(load(folder), make_params())
  assert initial_weights.tokenizer_of(folder) == f'{tmp_path}/hf'
  (tmp_path / 'peft/tokenizer.json').write_text('{}')
  assert initial_weights.tokenizer_of(folder) == folder
  # A relative base lies where the command runs, or beside the adapter.
  beside = save_peft(tmp_path / 'beside', 'hf')
  assert_merged(load(beside), make_params())
  # An adapter on an adapter.
  twice = save_peft(tmp_path / 'twice', folder)
  assert_merged(load(twice), load(folder))
  # A folder with whole weights is a model, whatever else lies there.
  (tmp_path / 'hf/adapter_config.json').write_text('{}')
  assert_same(load(f'{tmp_path}/hf'), make_params())


@pytest.mark.parametrize(
  ('base', 'problem'),
  [
    ('', 'it names no base'),
    ('/nowhere/base', "its base '/nowhere/base' is no folder here"),
    ('itself', "its base '.*' is an adapter on itself"),
  ],
)
def test_a_peft_folder_without_its_base_names_the_keys(tmp_path, base, problem):
  folder = save_peft(
    tmp_path / 'peft', tmp_path / 'peft' if base == 'itself' else base
  )
  words = (
    f'an adapter .PEFT., not a model, and {problem}; fix: .*model.init_from '
    'and --config.adapter.init_from='
  )
  for ask in (initial_weights.read_config, initial_weights.tokenizer_of):
    with pytest.raises(InputError, match=words):
      ask(folder)


@pytest.mark.parametrize(
  'changes',
  [
    {'r': 'two'},
    {'r': True},
    {'r': 0},
    {'lora_alpha': None},
    {'lora_alpha': float('nan')},
    {'lora_alpha': 10**400},
    {'use_rslora': True},
    {'use_dora': True},
    {'rank_pattern': ['q_proj']},
    {'rank_pattern': {'q_proj': 'x'}},
    {'rank_pattern': {'(.*.*)*x': 2}},
    {'alpha_pattern': {'(': 2}},
    {'alpha_pattern': {'q_proj': 3}},
    {'base_model_name_or_path': 7},
    {'init_lora_weights': 'pissa'},
  ],
)
def test_a_spoilt_adapter_config_is_refused_in_one_line(tmp_path, changes):
  hf_checkpoint.save(tmp_path / 'hf', make_params(), CONFIG)
  folder = save_peft(tmp_path / 'peft', tmp_path / 'hf')
  path = tmp_path / 'peft/adapter_config.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | changes))
  if changes == {'use_rslora': True}:  # plain LoRA of another scale: fine
    load(folder)
    return
  with pytest.raises(InputError, match='; fix: ') as error:
    initial_weights.check(folder, initial_weights.read_config(folder))
  assert str(error.value).count('\n') == 0


def test_rows_are_added_as_the_mean_of_the_table(tmp_path):
  hf_checkpoint.save(tmp_path / 'hf', make_params(), CONFIG)
  make_run(tmp_path / 'run')
  save_step(tmp_path / 'run', 1, make_params())
  larger = dataclasses.replace(CONFIG, vocab_size=19)
  for folder in (f'{tmp_path}/hf', f'{tmp_path}/run'):
    params = load(folder, larger, add_rows=True)
    old, new = (
      dict(tree.flatten_with_names(part)) for part in (make_params(), params)
    )
    for name, leaf in new.items():
      np.testing.assert_array_equal(leaf[: len(old[name])], old[name])
    for name in ('embed/embedding', 'head/kernel'):
      assert new[name].shape == (19, 8)
      mean = np.broadcast_to(old[name].mean(0), (3, 8))
      np.testing.assert_allclose(new[name][16:], mean, atol=1e-6)
    assert set(map(len, new.values())) == {2, 8, 19}
  with pytest.raises(InputError, match='shape'):
    load(f'{tmp_path}/hf', larger)


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_named(tmp_path, value):
  params = make_params()
  params['layers']['mlp']['up']['kernel'][1, 3, 3] = value
  hf_checkpoint.save(tmp_path / 'hf', params, CONFIG)
  make_run(tmp_path / 'run')
  save_step(tmp_path / 'run', 1, params)
  for folder in (f'{tmp_path}/hf', f'{tmp_path}/run'):
    with pytest.raises(InputError) as error:
      load(folder)
    message = str(error.value)
    assert message.startswith(f'{folder}: model.layers.1.mlp.up_proj.weight ')
    assert 'the weights that were given' in message and '; fix: ' in message


def test_the_tokenizer_is_the_one_that_a_chain_of_runs_began_with(tmp_path):
  first = make_run(tmp_path / 'a', init_from='somewhere/hf')
  second = make_run(tmp_path / 'b', init_from=first)
  third = make_run(tmp_path / 'c', init_from=second, tokenizer='other')
  assert initial_weights.tokenizer_of(second) == 'somewhere/hf'
  assert initial_weights.tokenizer_of(third) == 'other'


@pytest.mark.parametrize(
  'changes',
  [
    *({'model': 3}, {'model': {}}, {'model': {'init_from': None}}),
    *({'adapter': []}, {'adapter': {'rank': 'x'}}, {'tokenizer': 7}),
    {'seed': 'x'},
  ],
)
def test_a_run_whose_config_is_of_other_types_is_named(tmp_path, changes):
  folder = make_run(tmp_path / 'run')
  path = tmp_path / 'run' / 'config.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | changes))
  for function in (
    lambda: initial_weights.check(folder, CONFIG),
    lambda: initial_weights.tokenizer_of(folder),
  ):
    with pytest.raises(InputError, match='run/config.json: not the config of'):
      function()


@pytest.mark.parametrize('content', ['', '{', '[]'])
def test_a_damaged_model_file_is_named(tmp_path, content):
  folder = make_run(tmp_path / 'run')
  (tmp_path / 'run' / 'model.json').write_text(content)
  with pytest.raises(InputError, match='run/model.json: .*; fix: '):
    initial_weights.read_config(folder)
