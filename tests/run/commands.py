"""Helpers of tests/run: the real command on a shrunk experiment."""

import pathlib

from dpo_jax import config as config_lib
from dpo_jax import main as main_lib
from dpo_jax.run import inputs
from dpo_jax.run import job as job_lib

ROOT = pathlib.Path(__file__).resolve().parents[2]
EXPERIMENT = f'{ROOT}/experiments/quickstart.py:stage=dpo,runlocal'
CONFIG = f'--config={EXPERIMENT}'
LLAMA = {
  'model.preset': 'llama-3.1-8b',
  'model.vocab_size': '128256',
  'precision.compute': 'bfloat16',
}
GOOD = '{"prompt": "p%d", "chosen": "yes", "rejected": "no"}\n'


def refuse(arguments, tmp_path, capsys):
  """The error line of a command: exit code 2, one line, no file written."""
  before = sorted(tmp_path.rglob('*'))
  code = main_lib.main([CONFIG, f'--workdir={tmp_path}/run', *arguments])
  error = capsys.readouterr().err
  assert code == 2, error
  assert error.count('\n') == 1 and 'fix: ' in error
  assert 'Traceback' not in error
  assert sorted(tmp_path.rglob('*')) == before
  return error


def write_good(tmp_path, rows=40):
  """The flag that names a new file of good pairs."""
  path = tmp_path / 'good.jsonl'
  path.write_text(''.join(GOOD % i for i in range(rows)))
  return f'--config.data.train={path}'


def build(folder, overrides=(), mesh=None):
  """The Job of the experiment with overrides (key, value); cache in folder."""
  config = config_lib.load(EXPERIMENT, overrides)
  config_lib.validate(config)
  data = inputs.read(config, folder, log=lambda line: None)
  return job_lib.build(config, data, mesh)
