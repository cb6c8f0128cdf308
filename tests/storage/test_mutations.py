"""config.json, index and adapter_config.json, spoilt: read, or one line."""

import json
import random

import jax
import numpy as np
import pytest

from dpo_jax import tree
from dpo_jax.models import adapters
from dpo_jax.models.adapter_spec import AdapterSpec
from dpo_jax.models.decoder_config import DecoderConfig, Rope, param_dims
from dpo_jax.storage import hf_checkpoint, initial_weights, peft_checkpoint
from dpo_jax.types import InputError

CONFIG = DecoderConfig(
  vocab_size=16,
  width=8,
  mlp_width=24,
  num_layers=2,
  num_heads=4,
  num_kv_heads=2,
  head_size=8,
  ropes=(Rope(scaling='yarn', factor=2.0, original_positions=64),),
)
SPEC = AdapterSpec(2, 8.0, ('attention/query', 'mlp/down'))
VALUES = (
  *(None, True, 0, 1, -1, 2**31, 2**63, 10**400, 1e300, float('nan')),
  *('', 'x', '\ud800', 'a' * 999, [], [1], {}, {'a': 1}, [[]], 1.5, 'linear'),
)
FILES = (
  'm/config.json',
  'm/model.safetensors.index.json',
  'p/adapter_config.json',
)


def noise(shapes):
  rng = np.random.default_rng(0)
  leaves = {k: rng.normal(size=v).astype(np.float32) for k, v in shapes.items()}
  return tree.unflatten_names(leaves)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  root = tmp_path_factory.mktemp('spoilt')
  sizes = CONFIG.sizes
  shapes = {k: [sizes[d] for d in v] for k, v in param_dims(CONFIG).items()}
  params = jax.device_get(noise(shapes))
  hf_checkpoint.save(root / 'm', params, CONFIG, max_shard_bytes=2000)
  adapter = noise(adapters.shapes(CONFIG, SPEC))
  peft_checkpoint.save(root / 'p', adapter, CONFIG, SPEC, base=str(root / 'm'))
  return root


def paths(value, path=()):
  """All places within nested objects and lists."""
  items = value.items() if isinstance(value, dict) else ()
  items = enumerate(value) if isinstance(value, list) else items
  for key, inner in items:
    yield (*path, key)
    yield from paths(inner, (*path, key))


def mutated(text, rng):
  """The text of a file with one value changed, removed or cut off."""
  if rng.random() < 0.1:
    cut = rng.randrange(len(text))
    return text[:cut] + rng.choice(['', '{', '\0', '[' * 3000]) + text[cut:]
  value = json.loads(text)
  *outer, key = rng.choice(list(paths(value)))
  place = value
  for step in outer:
    place = place[step]
  if rng.random() < 0.2:
    del place[key]
  else:
    place[key] = rng.choice((*VALUES, [place[key]], {'x': place[key]}))
  return json.dumps(value)


@pytest.mark.parametrize('name', FILES)
def test_a_spoilt_file_is_read_or_refused_in_one_line(folder, name):
  path, rng = folder / name, random.Random(name)
  original, refused = path.read_text(), 0
  for _ in range(150):
    text = mutated(original, rng)
    path.write_bytes(text.encode('utf-8', 'surrogatepass'))
    try:
      config = initial_weights.read_config(str(path.parent))
      initial_weights.check(str(path.parent), config)
      initial_weights.tokenizer_of(str(path.parent))
    except InputError as error:
      refused += 1
      assert '; fix: ' in str(error) and '\n' not in str(error), text
  path.write_text(original)
  assert refused > 40
  initial_weights.check(str(path.parent), CONFIG)
