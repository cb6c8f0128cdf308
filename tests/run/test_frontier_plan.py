"""frontier_plan: which steps of which runs, and what is refused."""

import shutil

import commands
import pytest

from dpo_jax import main
from dpo_jax.run import frontier_plan
from dpo_jax.types import InputError


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A finished run of two updates; only the second is kept beside the best."""
  folder = tmp_path_factory.mktemp('plan') / 'loss=sigmoid,seed=0'
  flags = [
    '--config.train.save_every=1',
    '--config.train.keep_checkpoints=2',
    '--config.train.eval_every=1',
    '--config.train.keep_best=-loss',
  ]
  assert main.main([commands.CONFIG, *flags, f'--workdir={folder}']) == 0
  return folder


def steps(workdir, words='all', overrides=()):
  tasks = frontier_plan.tasks(str(workdir), overrides, words, ['length'], 8)
  return {task.name: task.steps for task in tasks}


def refusal(*args):
  with pytest.raises(InputError) as error:
    steps(*args)
  line = str(error.value)
  assert '\n' not in line and 'fix: ' in line
  return line


@pytest.mark.parametrize(
  'words,want',
  [
    ('all', [0, 1, 2]),
    ('last', [2]),
    ('0,2', [0, 2]),
    ('2, last,1', [1, 2]),
  ],
)
def test_words_of_steps(run, words, want):
  assert steps(run, words) == {run.name: want}


def test_best_is_that_of_the_run(run):
  (best,) = steps(run, 'best').values()
  assert len(best) == 1 and best[0] in (0, 1, 2)


def test_names_with_commas_are_parted_by_semicolons(run, tmp_path):
  other = shutil.copytree(run, tmp_path / 'sweep/a,b')
  assert [*steps(f'{run};{other};{run}')] == [run.name, 'a,b']
  assert [*steps(tmp_path / 'sweep')] == ['a,b']


def test_an_unfinished_run_of_a_folder_is_left_out_aloud(run, tmp_path, capsys):
  shutil.copytree(run, tmp_path / 'one')
  other = shutil.copytree(run, tmp_path / 'two')
  (other / 'DONE').unlink()
  shutil.rmtree(other / 'checkpoints/2')
  assert steps(tmp_path, '2') == {'one': [2], 'two': []}
  out = capsys.readouterr().out
  assert 'two: left out, step 2 is not there yet' in out
  # A run that is named itself, or is done, must have the step.
  assert 'step 2 is not saved in' in refusal(other, '2')
  assert 'use some of 0, 1' in refusal(other, '2')


@pytest.mark.parametrize(
  'words,want',
  [
    ('7', 'step 7 is not saved'),
    ('bst', "did you mean 'best'?"),
    ('1,,2', "'' is not allowed"),
    ('-1', "'-1' is not allowed"),
  ],
)
def test_steps_that_are_none_are_refused(run, words, want):
  assert want in refusal(run, words)


def test_what_is_no_run_is_refused(tmp_path):
  assert 'neither a run nor a folder of runs' in refusal(tmp_path)
  assert 'neither a run nor a folder' in refusal(tmp_path / 'missing')


def test_only_keys_that_training_did_not_read_may_change(run):
  steps(run, 'last', [('sample.seed', '3')])
  line = refusal(run, 'last', [('loss.beta', '3')])
  assert 'config.loss.beta' in line
  assert 'sample.sed' in refusal(run, 'last', [('sample.sed', '3')])


@pytest.mark.parametrize(
  'flags,want',
  [
    (['--num_samples=0'], '--num_samples'),
    (['--temperature=-1'], 'sample.temperature'),
    (['--rewards=lexcon'], "did you mean 'lexicon'?"),
    (['--config=experiments/quickstart.py'], 'every run has its own'),
    (['--step=2'], '--step'),
  ],
)
def test_the_command_refuses_in_one_line(run, flags, want, capsys):
  code = main.main(['--mode=frontier', f'--workdir={run}', *flags])
  line = capsys.readouterr().err
  assert code == 2 and line.count('\n') == 1 and want in line
  assert not (run / 'frontier').exists()
