"""export: the folder holds the newest policy, whole or not at all."""

import jax
import numpy as np
from commands import CONFIG, EXPERIMENT

from dpo_jax import config as config_lib
from dpo_jax import main as main_lib
from dpo_jax.run import session as sessions
from dpo_jax.storage import hf_checkpoint


def test_the_folder_holds_the_newest_policy_and_is_written_once(
  tmp_path, capsys
):
  run, folder = f'--workdir={tmp_path}/run', tmp_path / 'folder'
  assert main_lib.main([CONFIG, run]) == 0
  export = [CONFIG, run, '--mode=export', f'--export_to={folder}']
  assert main_lib.main(export) == 0
  assert f'{folder}: the policy of step 2' in capsys.readouterr().out
  config = config_lib.load(EXPERIMENT)
  with sessions.open_workdir(config, f'{tmp_path}/run') as session:
    policy = sessions.newest_policy(session)
    model = session.job.inputs.model
  jax.tree.map(
    np.testing.assert_array_equal,
    jax.device_get(policy.params),
    hf_checkpoint.load_params(folder, model),
  )
  before = {p: p.read_bytes() for p in folder.iterdir()}
  assert main_lib.main(export) == 2
  assert 'is there already; fix: ' in capsys.readouterr().err
  assert before == {p: p.read_bytes() for p in folder.iterdir()}
