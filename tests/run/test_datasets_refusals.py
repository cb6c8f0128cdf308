"""Bad data through the real command: exit 2, one line, nothing on disk.

The files are those of data/test_bad_inputs.py.
"""

import pathlib
import sys

import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent / 'data'))

import test_bad_inputs  # noqa: E402

from dpo_jax import main as main_lib  # noqa: E402
from dpo_jax import tree  # noqa: E402
from dpo_jax.models import presets  # noqa: E402
from dpo_jax.models.decoder_config import param_dims  # noqa: E402
from dpo_jax.storage import hf_checkpoint  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parents[2]
CONFIG = f'--config={ROOT}/experiments/quickstart.py:stage=dpo,runlocal'


def refuse(arguments, tmp_path, capsys):
  before = sorted(tmp_path.rglob('*'))
  code = main_lib.main([CONFIG, f'--workdir={tmp_path}/run', *arguments])
  error = capsys.readouterr().err
  assert code == 2, error
  assert error.count('\n') == 1 and 'fix: ' in error
  assert 'Traceback' not in error
  assert sorted(tmp_path.rglob('*')) == before
  return error


@pytest.mark.parametrize(
  'name,data,line,parts',
  [case[1:] for case in test_bad_inputs.FILES],
  ids=[case[0] for case in test_bad_inputs.FILES],
)
def test_bad_data_leaves_no_file(tmp_path, capsys, name, data, line, parts):
  path = tmp_path / name
  path.write_bytes(data)
  error = refuse([f'--config.data.train={path}'], tmp_path, capsys)
  assert error.startswith(f'{path}:{line}: ')
  assert all(part in error for part in parts)


GOOD = '{"prompt": "p%d", "chosen": "yes", "rejected": "no"}\n'


def write_good(tmp_path, rows=40):
  path = tmp_path / 'good.jsonl'
  path.write_text(''.join(GOOD % i for i in range(rows)))
  return f'--config.data.train={path}'


UNUSABLE = {
  'empty completion': '{"prompt": "p", "chosen": "", "rejected": "no"}',
  'identical sides': '{"prompt": "p", "chosen": "so", "rejected": "so"}',
  'prompt fills the window': '{"prompt": "%s", "chosen": "yes", '
  '"rejected": "no"}' % ('p' * 300),
}


@pytest.mark.parametrize('row', UNUSABLE.values(), ids=UNUSABLE)
def test_unusable_rows_are_refused_when_strict(tmp_path, capsys, row):
  good = write_good(tmp_path)
  with open(tmp_path / 'good.jsonl', 'a') as file:
    file.write(row + '\n')
  drop = '--config.data.truncation=drop'
  error = refuse([good, drop, '--config.data.strict'], tmp_path, capsys)
  assert 'good.jsonl:41' in error


def test_unusable_rows_are_dropped_and_counted(tmp_path, capsys):
  good = write_good(tmp_path)
  with open(tmp_path / 'good.jsonl', 'a') as file:
    file.write('\n'.join(UNUSABLE.values()) + '\n')
  drop = '--config.data.truncation=drop'
  assert main_lib.main([CONFIG, f'--workdir={tmp_path}/run', good, drop]) == 0
  out = capsys.readouterr().out
  assert 'ledger: 43 rows read' in out and '3 dropped' in out


def test_a_vocabulary_larger_than_the_models_is_refused(tmp_path, capsys):
  arguments = [write_good(tmp_path), '--config.model.vocab_size=100']
  error = refuse(arguments, tmp_path, capsys)
  assert 'config.tokenizer' in error and '100' in error


@pytest.fixture
def model_of_300(tmp_path):
  # The byte tokenizer has 256 + 3 tokens.
  config = presets.get('tiny', vocab_size=300)
  leaves = {
    name: np.zeros([config.sizes[d] for d in dims], np.float32)
    for name, dims in param_dims(config).items()
  }
  hf_checkpoint.save(tmp_path / 'm', tree.unflatten_names(leaves), config)
  return ['--config.model.preset=', f'--config.model.init_from={tmp_path}/m']


def test_a_vocabulary_larger_than_the_tokenizer_is_refused(
  tmp_path, capsys, model_of_300
):
  arguments = [write_good(tmp_path), *model_of_300]
  error = refuse(arguments, tmp_path, capsys)
  assert "'byte' has 259 tokens, the model 300" in error
  assert 'model.allow_larger_vocab=True' in error
  allowed = [*arguments, '--config.model.allow_larger_vocab']
  assert main_lib.main([CONFIG, '--mode=plan', *allowed]) == 0


def test_a_coefficient_without_experts_is_refused(tmp_path, capsys):
  arguments = [write_good(tmp_path), '--config.model.router_aux_coef=0.1']
  error = refuse(arguments, tmp_path, capsys)
  assert error.startswith('config.model.router_aux_coef: 0.1 is not used')


def test_a_mesh_that_does_not_fit_is_refused(tmp_path, capsys):
  arguments = [write_good(tmp_path), '--config.mesh.data=3']
  error = refuse(arguments, tmp_path, capsys)
  assert error.startswith('config.mesh: data=3')


def test_a_workdir_that_is_a_file_is_refused(tmp_path, capsys):
  (tmp_path / 'run').write_text('not a folder')
  error = refuse([write_good(tmp_path)], tmp_path, capsys)
  assert str(tmp_path / 'run') in error
