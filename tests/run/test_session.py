"""session: opening a workdir; a refusal leaves it unchanged."""

import shutil

import jax
import numpy as np
import pytest
from commands import CONFIG, EXPERIMENT, refuse, write_good

from dpo_jax import config as config_lib
from dpo_jax import main as main_lib
from dpo_jax.config import rules, stored
from dpo_jax.run import session as sessions
from dpo_jax.types import InputError


def test_a_mesh_that_does_not_fit_is_refused(tmp_path, capsys):
  arguments = [write_good(tmp_path), '--config.mesh.data=3']
  error = refuse(arguments, tmp_path, capsys)
  assert error.startswith('config.mesh: data=3')


def test_a_workdir_that_is_a_file_is_refused(tmp_path, capsys):
  (tmp_path / 'run').write_text('not a folder')
  error = refuse([write_good(tmp_path)], tmp_path, capsys)
  assert str(tmp_path / 'run') in error


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """(config, workdir) of a run of two updates."""
  workdir = tmp_path_factory.mktemp('session') / 'run'
  assert main_lib.main([CONFIG, f'--workdir={workdir}']) == 0
  return config_lib.load(EXPERIMENT), workdir


def test_the_newest_policy_is_the_last_checkpoints(trained):
  config, workdir = trained
  with sessions.open_workdir(config, str(workdir)) as session:
    more = {'rng': None}
    policy = sessions.policy(session, more)
  assert policy.step == 2 and int(policy.items['rng']['step']) == 2


def test_without_a_checkpoint_it_is_the_initial_model(trained, tmp_path):
  config, workdir = trained
  with sessions.open_workdir(config, str(tmp_path / 'new')) as session:
    first = sessions.policy(session)
    assert (first.step, first.items) == (0, {})
    again = sessions.policy(session)
  jax.tree.map(np.testing.assert_array_equal, first.params, again.params)
  assert not (tmp_path / 'new' / 'config.json').exists()  # nothing trained
  with sessions.open_workdir(config, str(workdir)) as session:
    last = sessions.policy(session)
  leaves = zip(jax.tree.leaves(first.params), jax.tree.leaves(last.params))
  assert any(np.any(a != b) for a, b in leaves)


@pytest.mark.parametrize('trains', [False, True])
def test_a_workdir_that_leads_elsewhere_is_refused(trained, tmp_path, trains):
  config, workdir = trained
  shutil.copytree(workdir, tmp_path / 'run')
  (tmp_path / 'run' / 'evaluate').symlink_to(tmp_path)
  with pytest.raises(InputError, match='evaluate: a link to'):
    with sessions.open_workdir(config, str(tmp_path / 'run'), trains=trains):
      pass


def test_a_workdir_that_trains_is_locked_against_another_process(trained):
  config, workdir = trained
  with sessions.open_workdir(config, str(workdir), trains=True) as session:
    assert (workdir / '.lock').exists()
    assert session.directory.config()['train']['num_steps'] == 2


def test_another_config_is_refused_before_anything_is_written(
  trained, tmp_path
):
  config, workdir = trained
  other = config_lib.load(EXPERIMENT, [('loss.beta', '0.7')])
  before = {p: p.read_bytes() for p in workdir.rglob('*') if p.is_file()}
  with pytest.raises(
    InputError, match=r'config.loss.beta is 0.1 there and 0.7'
  ):
    with sessions.open_workdir(other, str(workdir), trains=True):
      pass
  assert before == {
    p: p.read_bytes() for p in workdir.rglob('*') if p.is_file()
  }


def test_what_may_change_are_keys_or_sections():
  keys = rules.flatten(config_lib.base())
  for name in stored.NO_NUMBERS:
    assert name in keys or any(key.startswith(f'{name}.') for key in keys), name
