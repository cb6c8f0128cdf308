"""Mutated JSON of models: config.json, the index, adapter_config.json.

  PYTHONPATH=. python tests/storage/mutated_models.py [NUM] [SEED]

Each time one of the three files is changed at one place, and the folder is read
as a run would read it, in this process. It is read or refused in one line. The
script prints how often each happened, and the mutations that did anything else.
"""

import json
import math
import pathlib
import random
import sys
import tempfile
import time
import traceback

import jax
import numpy as np

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
# The last is no UTF-8 once it is written.
_TEXTS = ('', '{', '\0', '[' * 3000, '\ud800')
FILES = (
  'm/config.json',
  'm/model.safetensors.index.json',
  'p/adapter_config.json',
)


def write(root: pathlib.Path) -> None:
  """Writes a sharded model and an adapter of it."""
  sizes = CONFIG.sizes
  shapes = {k: [sizes[d] for d in v] for k, v in param_dims(CONFIG).items()}
  params = jax.device_get(_noise(shapes))
  hf_checkpoint.save(root / 'm', params, CONFIG, max_shard_bytes=2000)
  adapter = _noise(adapters.shapes(CONFIG, SPEC))
  peft_checkpoint.save(root / 'p', adapter, CONFIG, SPEC, base=str(root / 'm'))


def _noise(shapes):
  rng = np.random.default_rng(0)
  leaves = {k: rng.normal(size=v).astype(np.float32) for k, v in shapes.items()}
  return tree.unflatten_names(leaves)


def mutated(text: str, rng: random.Random) -> str:
  """The text of a file with one value changed, removed or cut off."""
  if rng.random() < 0.1:
    cut = rng.randrange(len(text))
    return text[:cut] + rng.choice(_TEXTS) + text[cut:]
  value = json.loads(text)
  *outer, key = rng.choice(list(_paths(value)))
  place = value
  for step in outer:
    place = place[step]
  if rng.random() < 0.2:
    del place[key]
  else:
    place[key] = rng.choice((*VALUES, [place[key]], {'x': place[key]}))
  return json.dumps(value)


def _paths(value, path=()):
  """All places within nested objects and lists."""
  items = value.items() if isinstance(value, dict) else ()
  items = enumerate(value) if isinstance(value, list) else items
  for key, inner in items:
    yield (*path, key)
    yield from _paths(inner, (*path, key))


def run(
  root: pathlib.Path,
  name: str,
  count: int,
  seed: int = 0,
  seconds: float = math.inf,
) -> tuple[dict[str, int], list[str]]:
  """Returns how often a file was read or refused, and failures as text.

  Args:
    root: a folder that `write` filled. The file is put back at the end.
    name: of FILES.
    count: mutations.
    seed: of the mutations.
    seconds: what reading a folder may take.
  """
  path, rng = root / name, random.Random(f'{name} {seed}')
  original, failures = path.read_text(), []
  counts = {'read': 0, 'refused': 0}
  for _ in range(count):
    text = mutated(original, rng)
    path.write_bytes(text.encode('utf-8', 'surrogatepass'))
    start = time.monotonic()
    try:
      counts[_outcome(str(path.parent))] += 1
      assert time.monotonic() - start < seconds, 'too slow'
    except Exception:
      failures.append(f'{traceback.format_exc()[-1500:]}\n{name}: {text}')
  path.write_text(original)
  return counts, failures


def _outcome(folder: str) -> str:
  try:
    config = initial_weights.read_config(folder)
    initial_weights.check(folder, config)
    initial_weights.tokenizer_of(folder)
  except InputError as error:
    assert '; fix: ' in str(error) and str(error).isprintable(), str(error)
    return 'refused'
  return 'read'


if __name__ == '__main__':
  numbers = [int(argument) for argument in sys.argv[1:]]
  num, first = (*numbers, *(2000, 0)[len(numbers) :])
  with tempfile.TemporaryDirectory() as made:
    write(pathlib.Path(made))
    results = {n: run(pathlib.Path(made), n, num, first, 5) for n in FILES}
  failed = [text for _, texts in results.values() for text in texts]
  print('\n\n'.join(failed[:10]))
  for file, (done, texts) in results.items():
    print(f'{file}: {num} mutations: {done}, {len(texts)} failures')
  sys.exit(bool(failed))
