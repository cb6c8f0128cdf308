"""A small experiment with sweeps, for the tests: a tiny model, ten pairs."""

import json
import pathlib

TEXT = '''"""A question."""

from dpo_jax import config as config_lib


def get_config(arg=''):
  args = config_lib.parse_arg(arg, loss='sigmoid', runlocal=False)
  config = config_lib.base()
  config.data.train = {data!r}
  config.data.eval_pairs = 4
  config.data.max_length = 32
  config.tokenizer = 'byte'
  config.model.preset = 'tiny'
  config.reference.mode = 'cache' if args.loss != 'simpo' else 'none'
  config.loss.terms = {{args.loss: 1.0}}
  config.optim.learning_rate = 1e-3
  config.optim.schedule = 'constant'
  config.train.num_steps = 4
  config.train.batch_size = 4
  config.train.eval_every = 2
  config.train.save_every = 2
  return config


def sweep():
  return config_lib.product({{'loss.beta': [0.1, 0.3], 'seed': range(2)}})


def sweep_losses():
  for loss in ('sigmoid', 'ipo'):
    yield f'loss={{loss}}', {{'loss.beta': 0.1}}


def sweep_broken():
  return [1 / 0]


def sweep_none():
  return []
'''


def write(folder: pathlib.Path, rows: int = 24, **changes: object) -> str:
  """Writes the experiment and its data; returns the path of the file.

  Args:
    folder: an existing folder.
    rows: pairs of the data.
    **changes: {text of the experiment: its replacement}, by keyword `old=new`.
  """
  data = folder / 'pairs.jsonl'
  lines = [
    {'prompt': f'p{i}', 'chosen': 'yes' * (1 + i % 3), 'rejected': f'no{i}'}
    for i in range(rows)
  ]
  data.write_text(''.join(json.dumps(line) + '\n' for line in lines))
  text = TEXT.format(data=str(data))
  for old, new in changes.items():
    text = text.replace(old, str(new))
  path = folder / 'experiment.py'
  path.write_text(text)
  return str(path)
