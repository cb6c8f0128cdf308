"""initial_weights.py: a model from a Hugging Face folder or from a run."""

import jax
import numpy as np
import pytest

from dpo_jax import tree
from dpo_jax.models.decoder_config import DecoderConfig, param_dims
from dpo_jax.storage import (
  checkpoints,
  hf_checkpoint,
  initial_weights,
  run_dir,
  state_items,
)
from dpo_jax.types import InputError

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


def make_run(folder, *, tokenizer='', init_from='', rank=0):
  """A run directory that trained a model of CONFIG, without checkpoints."""
  config = {
    'tokenizer': tokenizer,
    'model': {'init_from': init_from},
    'adapter': {'rank': rank},
  }
  run_dir.RunDir(folder).create_or_continue(config)
  initial_weights.record(folder, CONFIG)
  return str(folder)


def save_step(folder, step, params):
  with checkpoints.Checkpoints(folder / 'checkpoints') as saver:
    saver.save(step, {state_items.POLICY: params, 'rng': {'x': 1}}, {})


def load(folder):
  abstract = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=FIRST),
    make_params(),
  )
  shardings = jax.tree.map(lambda _: FIRST, abstract)
  return initial_weights.load(folder, CONFIG, shardings, abstract)


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


def test_a_run_of_an_adapter_has_no_whole_weights(tmp_path):
  folder = make_run(tmp_path / 'run', rank=4)
  refused = 'trained an adapter.*--mode=export'
  with pytest.raises(InputError, match=refused):
    initial_weights.check(folder, CONFIG)
  with pytest.raises(InputError, match=refused):
    load(folder)


def test_the_tokenizer_is_the_one_that_a_chain_of_runs_began_with(tmp_path):
  first = make_run(tmp_path / 'a', init_from='somewhere/hf')
  second = make_run(tmp_path / 'b', init_from=first)
  third = make_run(tmp_path / 'c', init_from=second, tokenizer='other')
  assert initial_weights.tokenizer_of(second) == 'somewhere/hf'
  assert initial_weights.tokenizer_of(third) == 'other'


@pytest.mark.parametrize('content', ['', '{', '[]'])
def test_a_damaged_model_file_is_named(tmp_path, content):
  folder = make_run(tmp_path / 'run')
  (tmp_path / 'run' / 'model.json').write_text(content)
  with pytest.raises(InputError, match='run/model.json: .*; fix: '):
    initial_weights.read_config(folder)
