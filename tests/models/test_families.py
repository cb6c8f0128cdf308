"""families: logits of golden and real checkpoints, and back to the files."""

import ast
import os
import pathlib

import jax
import numpy as np
import pytest
import safetensors.numpy

from dpo_jax import tree, types
from dpo_jax.models import architectures, decoder, families
from dpo_jax.storage import hf_checkpoint

PACKAGE = pathlib.Path(decoder.__file__).parents[1]


def test_no_other_module_tests_the_name_of_a_family():
  # presets.py names each model's family; DecoderConfig's default is 'llama'.
  names = set(families.FAMILIES) - {'llama'}
  for path in PACKAGE.rglob('*.py'):
    if path.name not in ('families.py', 'presets.py'):
      nodes = ast.walk(ast.parse(path.read_text(encoding='utf-8')))
      strings = {node.value for node in nodes if isinstance(node, ast.Constant)}
      assert not strings & names, path


def read_model(folder):
  """The model of a Hugging Face folder and its parameters."""
  mapping = hf_checkpoint.read_config(folder)
  config = architectures.from_hf_config(mapping)
  return decoder.make_model(config), hf_checkpoint.load_params(folder, config)


def logits_of(model, params, tokens, prompt_id):
  """Logits [R, L, V] in float64; slots of equal prompt_id are one text."""
  tokens, prompt_id = np.int32(tokens), np.int32(prompt_id)
  first = np.argmax(prompt_id[..., None] == prompt_id[:, None], axis=-1)
  positions = (np.arange(tokens.shape[1]) - first) * (prompt_id > 0)
  zeros = np.zeros_like(tokens)
  rows = types.Rows(
    tokens, np.int32(positions), prompt_id, zeros, zeros, zeros - 1
  )
  hidden_RLD, _ = jax.jit(model.hidden)(params, rows)
  head = model.head(params)
  logits = np.float64(hidden_RLD) @ np.float64(head.weight_VD).T
  if head.bias is not None:
    logits += head.bias
  if head.softcap is not None:
    logits = head.softcap * np.tanh(logits / head.softcap)
  return logits


@pytest.mark.parametrize('number', range(3))
def test_stories260k_scores(shared, number):
  # golden.npz: logits and token log-probs of an independent float64 forward.
  folder = shared / 'data/models/stories260K'
  golden = np.load(folder / 'golden.npz')
  tokens = golden[f'ids{number}'][None]
  model, params = read_model(folder)
  logits = logits_of(model, params, tokens, np.ones_like(tokens))[0]
  np.testing.assert_allclose(logits, golden[f'logits{number}'], atol=1e-4)
  logps = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
  logps = np.take_along_axis(logps[:-1], tokens[0, 1:, None], axis=-1)[:, 0]
  np.testing.assert_allclose(logps, golden[f'logp{number}'], atol=1e-4)


# Folders of hf_models/ to test. A $DPO_JAX_GOLDEN of one's own may have others.
GOLDEN = [*families.FAMILIES, 'llama3_rope_tied']
if os.environ.get('DPO_JAX_GOLDEN'):
  OTHERS = pathlib.Path(os.environ['DPO_JAX_GOLDEN'], 'hf_models').glob('*/')
  GOLDEN = sorted(path.name for path in OTHERS) or GOLDEN


def alone_and_packed(ids_RL, mask_RL):
  """Tokens and prompt_ids [R + 1, R L]: one text per row, then all in one."""
  num_rows, length = ids_RL.shape
  tokens = np.zeros((num_rows + 1, num_rows * length), np.int32)
  prompt_id = np.zeros_like(tokens)
  tokens[:-1, :length], prompt_id[:-1, :length] = ids_RL, mask_RL
  texts = [ids[mask] for ids, mask in zip(ids_RL, mask_RL)]
  packed = np.concatenate(texts)
  tokens[-1, : len(packed)] = packed
  numbers = [np.full(len(text), i) for i, text in enumerate(texts, start=1)]
  prompt_id[-1, : len(packed)] = np.concatenate(numbers)
  return tokens, prompt_id


@pytest.mark.parametrize('name', GOLDEN)
def test_golden_logits_and_the_way_back(golden_models, tmp_path, name):
  # expected.npz: logits by transformers 5.23 of the random weights beside it.
  folder = golden_models / name
  model, params = read_model(folder)
  expected = np.load(folder / 'expected.npz')
  mask_RL = expected['attention_mask'] > 0
  rows = alone_and_packed(expected['input_ids'], mask_RL)
  logits = logits_of(model, params, *rows)
  want = expected['logits'][mask_RL]
  alone = logits[:-1, : mask_RL.shape[1]][mask_RL]
  packed = logits[-1, : len(want)]
  for got in (alone, packed):
    assert np.abs(got - want).max() < 1e-5 * np.abs(want).max()

  hf_checkpoint.save(tmp_path / 'out', params, model.config)
  again = hf_checkpoint.read_config(tmp_path / 'out')
  assert architectures.from_hf_config(again) == model.config
  written = tmp_path / 'out/model.safetensors'
  theirs = safetensors.numpy.load_file(folder / 'model.safetensors')
  assert_same(safetensors.numpy.load_file(written), theirs)
  with safetensors.safe_open(written, 'numpy') as file:
    assert file.metadata() == {'format': 'pt'}
  # The same bits again, and so the same scores.
  assert_same(read_model(tmp_path / 'out')[1], params)


def assert_same(ours, theirs):
  """Asserts equal names and equal bits of leaves."""
  leaves = dict(tree.flatten_with_names(theirs))
  for name, leaf in tree.flatten_with_names(ours):
    np.testing.assert_array_equal(leaves.pop(name), leaf, err_msg=name)
  assert not leaves
