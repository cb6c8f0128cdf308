"""identity: something changed between two starts is refused by name, or said.

Every trial trains a run for some steps, changes one thing, and starts it again.
"""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from commands import CONFIG

from dpo_jax import main as main_lib
from dpo_jax.run import session as sessions
from dpo_jax.storage import run_dir

ROWS = 24
PAIR = '{"prompt": "p%d", "chosen": "yes %d", "rejected": "no"}\n'
TEMPLATE = '{%% for m in messages %%}{{ m.content }}%s{%% endfor %%}'
CHAT = {
  'prompt': [{'role': 'user', 'content': 'hello'}],
  'chosen': [{'role': 'assistant', 'content': 'yes'}],
  'rejected': [{'role': 'assistant', 'content': 'no'}],
}


def main(workdir, *flags):
  return main_lib.main([CONFIG, f'--workdir={workdir}', *flags])


def contents(workdir):
  return {p: p.read_bytes() for p in workdir.rglob('*') if p.is_file()}


def write_rows(path, swapped=False, rows=ROWS):
  text = ''.join(PAIR % (i, i) for i in range(rows))
  if swapped:
    text = text.replace('chosen', 'x').replace('rejected', 'chosen')
    text = text.replace('"x"', '"rejected"')
  path.write_text(text)


def write_chats(path):
  rows = []
  for i in range(ROWS):
    prompt = [{'role': 'user', 'content': f'hello {i}'}]
    rows.append(json.dumps(CHAT | {'prompt': prompt}) + '\n')
  path.write_text(''.join(rows))


def not_done(workdir):
  """Makes a run look as if it was stopped after its last save."""
  (workdir / 'DONE').unlink()


@pytest.fixture(scope='module')
def base(tmp_path_factory):
  """A Hugging Face folder of random weights, and a PEFT folder beside it."""
  folder = tmp_path_factory.mktemp('base')
  assert main(folder / 'sft', '--config.train.num_steps=1') == 0
  export = ['--mode=export', f'--workdir={folder}/sft']
  assert main_lib.main([*export, f'--export_to={folder}/hf']) == 0
  lora = folder / 'lora'
  assert (
    main(lora, '--config.adapter.rank=2', '--config.train.num_steps=1') == 0
  )
  peft = ['--mode=export', '--config.adapter.export=peft']
  code = main_lib.main(
    [*peft, f'--workdir={lora}', f'--export_to={folder}/peft']
  )
  assert code == 0
  return folder


def flip(path, at=-5):
  data = bytearray(path.read_bytes())
  data[at] ^= 1
  path.write_bytes(bytes(data))


def turn(path):
  """Gives a model another rope_theta, wherever its config.json says it."""
  values = json.loads(path.read_text())
  for section in (values, values.get('rope_parameters') or {}):
    if 'rope_theta' in section:
      section['rope_theta'] = 50.0
  path.write_text(json.dumps(values))


def from_hf(folder, *flags):
  return (
    '--config.model.preset=',
    f'--config.model.init_from={folder}/hf',
    '--config.tokenizer=byte',
    *flags,
  )


def copy_of(base, tmp_path):
  folder = tmp_path / 'given'
  shutil.copytree(base, folder)
  return folder


def refused(workdir, flags, capsys):
  """Starts again; asserts one line of refusal that changed nothing."""
  before = contents(workdir)
  capsys.readouterr()
  code = main(workdir, *flags)
  error = capsys.readouterr().err
  assert code == 2 and error.count('\n') == 1 and 'fix: ' in error, error
  assert contents(workdir) == before
  return error


@pytest.mark.parametrize('change', ['swapped', 'fewer', 'more', 'edited'])
def test_other_data_is_refused(tmp_path, capsys, change):
  path = tmp_path / 'pairs.jsonl'
  write_rows(path)
  flags = f'--config.data.train={path}', '--config.data.eval_pairs=4'
  assert main(tmp_path / 'run', *flags) == 0
  not_done(tmp_path / 'run')
  if change == 'edited':
    path.write_text(path.read_text().replace('yes 20', 'yes 2O'))
  else:
    rows = {'swapped': ROWS, 'fewer': ROWS - 4, 'more': ROWS + 1}[change]
    write_rows(path, change == 'swapped', rows)
  error = refused(tmp_path / 'run', flags, capsys)
  assert error.startswith('config.data.train: ') and str(path) in error
  write_rows(path)
  assert main(tmp_path / 'run', *flags) == 0


def test_other_held_out_data_is_refused(tmp_path, capsys):
  train, held_out = tmp_path / 'train.jsonl', tmp_path / 'held_out.jsonl'
  write_rows(train)
  write_rows(held_out, rows=4)
  flags = f'--config.data.train={train}', f'--config.data.eval={held_out}'
  assert main(tmp_path / 'run', *flags) == 0
  not_done(tmp_path / 'run')
  write_rows(held_out, swapped=True, rows=4)
  error = refused(tmp_path / 'run', flags, capsys)
  assert error.startswith('config.data.eval: ') and str(held_out) in error


def test_another_template_is_refused(tmp_path, capsys):
  chats, template = tmp_path / 'chats.jsonl', tmp_path / 'chat.jinja'
  write_chats(chats)
  template.write_text(TEMPLATE % '|')
  flags = (
    f'--config.data.train={chats}',
    f'--config.data.chat_template={template}',
    '--config.data.eval_pairs=4',
  )
  assert main(tmp_path / 'run', *flags) == 0
  not_done(tmp_path / 'run')
  template.write_text(TEMPLATE % '/')
  error = refused(tmp_path / 'run', flags, capsys)
  assert error.startswith('config.data.chat_template: ')


WEIGHTS = {
  'params': (),
  'cache': ('--config.reference.mode=cache',),
  'lora': ('--config.adapter.rank=2', '--config.reference.mode=adapter_off'),
  'nf4': ('--config.adapter.rank=2', '--config.adapter.base=nf4'),
  'sft': (
    '--config.stage=sft',
    '--config.data.train=synthetic_demonstrations',
    '--config.loss.terms.sigmoid=0',
    '--config.loss.terms.nll=1',
    '--config.reference.mode=none',
  ),
  'moves': ('--config.loss.tr_dpo=true', '--config.loss.tr_tau=1'),
}


@pytest.mark.parametrize('kind', WEIGHTS)
def test_a_flipped_bit_in_the_weights_is_refused(base, tmp_path, capsys, kind):
  given = copy_of(base, tmp_path)
  flags = from_hf(given, *WEIGHTS[kind])
  if kind == 'sft':
    flags += ('--config.loss.beta=None',)
  assert main(tmp_path / 'run', *flags) == 0, capsys.readouterr().err
  not_done(tmp_path / 'run')
  flip(given / 'hf' / 'model.safetensors')
  error = refused(tmp_path / 'run', flags, capsys)
  assert error.startswith('config.model.init_from: ')
  # These two evaluate by what is in the checkpoint alone.
  if kind not in ('sft', 'moves'):
    error = refused(tmp_path / 'run', [*flags, '--mode=evaluate'], capsys)
    assert error.startswith('config.model.init_from: ')


def test_another_model_config_is_refused(base, tmp_path, capsys):
  given = copy_of(base, tmp_path)
  flags = from_hf(given)
  assert main(tmp_path / 'run', *flags) == 0
  not_done(tmp_path / 'run')
  turn(given / 'hf' / 'config.json')
  error = refused(tmp_path / 'run', flags, capsys)
  assert error.startswith('config.model: ') and 'rope' in error
  assert f' in {given}/hf; fix: ' in error


def test_another_reference_is_refused(base, tmp_path, capsys):
  given = copy_of(base, tmp_path)
  shutil.copytree(given / 'hf', given / 'reference')
  flags = from_hf(given, f'--config.reference.init_from={given}/reference')
  assert main(tmp_path / 'run', *flags) == 0
  not_done(tmp_path / 'run')
  flip(given / 'reference' / 'model.safetensors')
  error = refused(tmp_path / 'run', flags, capsys)
  assert error.startswith('config.reference.init_from: ')


def test_another_first_adapter_is_refused(base, tmp_path, capsys):
  given = copy_of(base, tmp_path)
  flags = from_hf(
    given,
    '--config.adapter.rank=2',
    f'--config.adapter.init_from={given}/peft',
  )
  assert main(tmp_path / 'run', *flags) == 0, capsys.readouterr().err
  not_done(tmp_path / 'run')
  flip(given / 'peft' / 'adapter_model.safetensors')
  error = refused(tmp_path / 'run', flags, capsys)
  assert error.startswith('config.adapter.init_from: ')


def test_a_start_that_was_trained_again_is_refused(base, tmp_path, capsys):
  given = copy_of(base, tmp_path)
  flags = f'--config.model.init_from={given}/sft', '--config.model.preset='
  assert main(tmp_path / 'run', *flags) == 0
  not_done(tmp_path / 'run')
  shutil.rmtree(given / 'sft')
  assert main(given / 'sft', '--config.train.num_steps=2') == 0
  error = refused(tmp_path / 'run', flags, capsys)
  assert error.startswith('config.model.init_from: ')


@pytest.mark.parametrize(
  'flag',
  [
    'seed=1',
    'loss.beta=0.3',
    'loss.terms.ipo=1',
    'optim.learning_rate=1e-4',
    'train.batch_size=4',
  ],
)
def test_a_checkpoint_of_another_run_is_refused(tmp_path, capsys, flag):
  assert main(tmp_path / 'run') == 0
  not_done(tmp_path / 'run')
  assert main(tmp_path / 'other', f'--config.{flag}') == 0
  shutil.rmtree(tmp_path / 'run' / 'checkpoints')
  shutil.copytree(
    tmp_path / 'other' / 'checkpoints', tmp_path / 'run' / 'checkpoints'
  )
  for mode in ((), ('--mode=evaluate',), ('--mode=sample',)):
    error = refused(tmp_path / 'run', mode, capsys)
    assert 'a checkpoint of another run' in error
    assert f'config.{flag.partition("=")[0]}' in error


def test_a_checkpoint_of_an_older_version_is_taken_and_said(
  tmp_path, monkeypatch, capsys
):
  with monkeypatch.context() as patched:
    patched.setattr(
      sessions,
      'checkpoint_meta',
      lambda _, count, skipped: {'num_tokens': count},
    )
    assert main(tmp_path / 'run') == 0
  not_done(tmp_path / 'run')
  capsys.readouterr()
  assert main(tmp_path / 'run') == 0
  assert 'of an older version' in capsys.readouterr().out


def test_a_damaged_score_cache_says_what_helps(tmp_path, capsys):
  cache = f'--config.data.cache_dir={tmp_path}/cache'
  flags = ['--config.reference.mode=cache', cache]
  assert main(tmp_path / 'run', *flags) == 0
  not_done(tmp_path / 'run')
  path = next((tmp_path / 'cache' / 'reference').glob('*.npz'))
  before = path.read_bytes()
  flip(path, len(before) // 2)
  error = refused(tmp_path / 'run', flags, capsys)
  assert str(path) in error and 'fix: remove this file' in error
  path.unlink()
  assert main(tmp_path / 'run', *flags) == 0
  assert np.load(path)['logps'].size


def test_another_rope_gives_other_cached_scores(base, tmp_path, capsys):
  given = copy_of(base, tmp_path)
  shared = f'--config.data.cache_dir={tmp_path}/cache'
  flags = from_hf(given, '--config.reference.mode=cache', shared)
  assert main(tmp_path / 'a', *flags) == 0
  turn(given / 'hf' / 'config.json')
  assert main(tmp_path / 'b', *flags) == 0
  first = (tmp_path / 'b' / 'metrics.jsonl').read_text().splitlines()[0]
  assert abs(json.loads(first)['loss'] - np.log(2)) < 1e-6


def test_another_mesh_is_harmless_and_said(tmp_path, capsys):
  assert main(tmp_path / 'run') == 0
  not_done(tmp_path / 'run')
  # As if the first mesh had rounded another way: whether it does is a matter
  # of the version of XLA.
  path = tmp_path / 'run' / 'env.json'
  env = json.loads(path.read_text())
  env['fingerprints']['model.init_from'] = 64 * '0'
  path.write_text(json.dumps(env))
  assert main(tmp_path / 'run') == 2
  assert 'other weights than this run was started with' in (
    capsys.readouterr().err
  )
  mesh = '--config.mesh.fsdp=2', '--config.mesh.data=4'
  assert main(tmp_path / 'run', *mesh) == 0
  out = capsys.readouterr().out
  assert 'not bitwise the weights of the start' in out
  assert len(jax.devices()) == 8


def test_x64_is_said(tmp_path):
  run = run_dir.RunDir(tmp_path)
  run.create_or_continue({'seed': 0})
  assert run.write_env({}) == []
  with jax.enable_x64(True):
    lines = run.write_env({})
  assert lines == ["jax_config.jax_enable_x64: 'False' then, 'True' now"]


@pytest.mark.parametrize(
  'flags',
  [
    ('--config.train.batch_size=100000',),
    ('--config.train.num_steps=0', '--config.train.num_epochs=0.0001'),
    ('--config.data.eval_pairs=100000',),
    ('--config.mesh.data=3',),
  ],
)
def test_a_refused_command_leaves_nothing(tmp_path, capsys, flags):
  assert main(tmp_path / 'a' / 'run', *flags) == 2
  assert capsys.readouterr().err.count('\n') == 1
  assert list(tmp_path.iterdir()) == []
  assert main(tmp_path / 'a' / 'run', '--config.train.num_steps=1') == 0


def test_a_start_without_a_checkpoint_leaves_nothing(base, tmp_path, capsys):
  given = copy_of(base, tmp_path)
  shutil.rmtree(given / 'sft' / 'checkpoints')
  flags = f'--config.model.init_from={given}/sft', '--config.model.preset='
  assert main(tmp_path / 'run', *flags) == 2
  assert 'no checkpoint' in capsys.readouterr().err
  assert not (tmp_path / 'run').exists()


def test_a_refused_command_leaves_the_files_of_another_command(
  tmp_path, capsys
):
  workdir = pathlib.Path(tmp_path / 'run')
  (workdir / 'cache').mkdir(parents=True)
  (workdir / 'notes.txt').write_text('kept')
  before = contents(tmp_path)
  assert main(workdir, '--config.train.batch_size=100000') == 2
  assert contents(tmp_path) == before and (workdir / 'cache').is_dir()
