"""Commands that read a run: its own config, and flags that agree with it."""

import json

import pytest
from commands import CONFIG

from dpo_jax import main as main_lib
from dpo_jax.storage import run_dir

TRAINED = [CONFIG, '--config.adapter.rank=2', '--config.adapter.alpha=4']


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """The workdir of an adapter of two updates."""
  workdir = tmp_path_factory.mktemp('flags') / 'run'
  assert main_lib.main([*TRAINED, f'--workdir={workdir}']) == 0
  return workdir


def contents(workdir):
  return {p: p.read_bytes() for p in workdir.rglob('*') if p.is_file()}


# One key per kind of thing that training depended on: (key, value).
CONTRADICTING = [
  ('adapter.alpha', '8.0'),
  ('adapter.rank', '4'),
  ('adapter.rslora', 'true'),
  ('adapter.targets', 'query'),
  ('adapter.base', 'nf4'),
  ('loss.beta', '0.5'),
  ('loss.label_smoothing', '0.1'),
  ('loss.terms.ipo', '1'),
  ('loss.f_divergence', 'forward_kl'),
  ('reference.mode', 'adapter_off'),
  ('model.preset', 'stories'),
  ('model.vocab_size', '640'),
  ('data.use_chat_template', 'always'),
  ('data.template_args', '{"thinking": false}'),
  ('data.max_length', '64'),
  ('data.add_eos', 'false'),
  ('data.eval_pairs', '8'),
  ('data.truncation', 'keep_prompt_start'),
  ('optim.learning_rate', '1e-5'),
  ('train.batch_size', '4'),
  ('train.num_steps', '3'),
  ('seed', '1'),
]


@pytest.mark.parametrize(['key', 'value'], CONTRADICTING)
@pytest.mark.parametrize('with_config', [False, True])
def test_a_contradicting_flag_is_refused(run, capsys, key, value, with_config):
  before = contents(run)
  given = TRAINED if with_config else []
  flag = f'--config.{key}={value}'
  code = main_lib.main([*given, '--mode=evaluate', f'--workdir={run}', flag])
  error = capsys.readouterr().err
  assert code == 2 and error.count('\n') == 1, error
  assert f'config.{key}' in error and 'fix: ' in error
  assert contents(run) == before


@pytest.mark.parametrize(
  'mode', [n for n, mode in main_lib.MODES.items() if mode.reads_run]
)
def test_every_mode_that_reads_a_run_refuses_another_alpha(
  run, mode, tmp_path, capsys
):
  flags = ['--config.adapter.alpha=32']
  if mode == 'export':
    flags.append(f'--export_to={tmp_path}/out')
  assert main_lib.main([f'--mode={mode}', f'--workdir={run}', *flags]) == 2
  error = capsys.readouterr().err
  assert error == (
    f'{run}/config.json: this run was trained with another config: '
    'config.adapter.alpha is 4.0 there and 32.0 now; fix: leave the flag out: '
    '--workdir alone opens the run as it was trained\n'
  )
  assert not (tmp_path / 'out').exists()


ALLOWED = [
  ('evaluate', 'eval.batch_size', '8'),
  ('evaluate', 'eval.max_comparisons', '3'),
  ('evaluate', 'data.eval', 'synthetic'),
  ('evaluate', 'data.cache_dir', '{tmp}/cache'),
  ('evaluate', 'mesh.data', '4'),
  ('evaluate', 'mesh.fsdp', '2'),
  ('evaluate', 'precision.head_chunk', '64'),
  ('evaluate', 'precision.compute', 'bfloat16'),
  ('evaluate', 'train.save_every', '1'),
  ('evaluate', 'train.keep_checkpoints', '1'),
  ('sample', 'sample.temperature', '0'),
  ('sample', 'sample.top_k', '3'),
  ('sample', 'sample.top_p', '0.9'),
  ('sample', 'sample.min_p', '0.1'),
  ('sample', 'sample.seed', '5'),
  ('sample', 'sample.num_samples', '2'),
  ('sample', 'sample.max_new_tokens', '3'),
  ('sample', 'sample.batch_size', '8'),
  ('export', 'adapter.export', 'peft'),
  ('plan', 'precision.compute', 'bfloat16'),
  ('plan', 'eval.batch_size', '8'),
  ('plan', 'mesh.fsdp', '2'),
  ('precompute_reference', 'data.cache_dir', '{tmp}/cache'),
]


@pytest.mark.parametrize(['mode', 'key', 'value'], ALLOWED)
def test_an_allowed_flag_works(run, tmp_path, mode, key, value):
  flags = [f'--config.{key}={value.format(tmp=tmp_path)}']
  if key.startswith('mesh.'):
    flags += ['--config.mesh.fsdp=2', '--config.mesh.data=4']
  if mode == 'export':
    flags.append(f'--export_to={tmp_path}/out')
  if mode == 'sample':
    flags += ['--config.sample.num_prompts=2']
    if 'max_new_tokens' not in key:
      flags += ['--config.sample.max_new_tokens=2']
  before = (run / 'config.json').read_bytes()
  assert main_lib.main([f'--mode={mode}', f'--workdir={run}', *flags]) == 0
  assert (run / 'config.json').read_bytes() == before


@pytest.mark.parametrize(
  'mode', ['evaluate', 'sample', 'export', 'plan', 'precompute_reference']
)
def test_without_config_the_bytes_are_those_of_the_training_command(
  run, mode, tmp_path, capsys, monkeypatch
):
  def written(given, name):
    if mode == 'precompute_reference':  # it writes to the shared caches
      monkeypatch.setenv('DPO_JAX_CACHE', str(tmp_path / name))
    before = contents(run)
    flags = [*given, f'--mode={mode}', f'--workdir={run}']
    if mode == 'sample':
      flags.append('--config.sample.max_new_tokens=2')
    if mode == 'export':
      flags.append(f'--export_to={tmp_path / name}')
    capsys.readouterr()
    assert main_lib.main(flags) == 0
    after = contents(run)
    out = capsys.readouterr().out.replace(str(tmp_path / name), 'OUT')
    new = {p: b for p, b in after.items() if before.get(p) != b}
    exported = {
      p.name: p.read_bytes()
      for p in (tmp_path / name).rglob('*')
      if p.is_file()
    }
    return out, new, exported

  for path in (run / 'per_example').glob('evaluate*'):
    path.unlink()
  with_config = written(TRAINED, 'a')
  for path in with_config[1]:
    path.unlink()  # so that the second command writes it again
  assert written([], 'b') == with_config
  assert mode == 'plan' or with_config[1] or with_config[2]


def test_a_workdir_without_a_run_needs_the_config(tmp_path, capsys):
  assert main_lib.main(['--mode=sample', f'--workdir={tmp_path}']) == 2
  assert '--config: is missing' in capsys.readouterr().err


def test_a_config_json_of_another_version_is_read(run, tmp_path, capsys):
  values = run_dir.RunDir(run).config()
  del values['data']['strict'], values['loss']['ld_alpha'], values['mesh']
  del values['loss']['label_smoothing']
  old = tmp_path / 'old'
  old.mkdir()
  for path in run.iterdir():
    if path.name != 'config.json':
      (old / path.name).symlink_to(path)
  (old / 'config.json').write_text(json.dumps(values))
  assert main_lib.main(['--mode=plan', f'--workdir={old}']) == 0
  values['data']['no_such_key'] = 1
  (old / 'config.json').write_text(json.dumps(values))
  assert main_lib.main(['--mode=plan', f'--workdir={old}']) == 2
  error = capsys.readouterr().err
  assert 'config.data.no_such_key' in error and error.count('\n') == 1
