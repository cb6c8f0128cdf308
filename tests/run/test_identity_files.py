"""identity: files of the run itself changed between two starts.

Of every kind that a user, a copy or a disk can change: refused by name, or
harmless and said.
"""

import os
import pathlib
import shutil

import jax
import pytest
import trials

from dpo_jax import main as main_lib


@pytest.fixture(scope='module')
def made(tmp_path_factory):
  """A run of two updates."""
  return trials.Trial(tmp_path_factory.mktemp('made') / 'run').begin()


@pytest.fixture(scope='module')
def other(tmp_path_factory):
  """The same run from another seed."""
  flags = ('--config.seed=1',)
  return trials.Trial(tmp_path_factory.mktemp('other') / 'run', flags).begin()


@pytest.fixture
def run(made, tmp_path):
  return made.copy(tmp_path / 'run')


def test_files_that_are_gone_are_said(run):
  names = (
    *('config.json', 'env.json', 'model.json', 'metrics.jsonl'),
    'per_example/eval_0.npz',
  )
  for name in names:
    (run.run / name).unlink()
  out = run.goes_on()
  for name in names:
    assert f'{run.run / name}: missing, ' in out
  # The checkpoint has what config.json and env.json had.
  assert 'continuing from step 1' in out


def test_a_run_without_its_checkpoints_says_that_it_starts_over(run, made):
  shutil.rmtree(run.run / 'checkpoints')
  assert 'no checkpoint: starting over from step 0' in run.goes_on()
  last = [
    (trial.run / 'per_example' / 'eval_2.npz').read_bytes()
    for trial in (run, made)
  ]
  assert last[0] == last[1]


def dropped(path):
  path.write_text(''.join(path.read_text().splitlines(True)[1:]))


def doubled(path):
  lines = path.read_text().splitlines(True)
  path.write_text(''.join([lines[0], *lines]))


def digit(path):
  text = path.read_text()
  assert '"loss": 0.6931' in text
  path.write_text(text.replace('"loss": 0.6931', '"loss": 0.6831'))


@pytest.mark.parametrize('change', [dropped, doubled, digit])
def test_other_metrics_are_refused(run, change):
  change(run.run / 'metrics.jsonl')
  error = run.refused()
  assert error.startswith(f'{run.run}/metrics.jsonl: its first 2 lines')
  assert 'remove it: then it begins after step 1' in error


def test_metrics_of_another_run_are_refused(run, other):
  shutil.copy(other.run / 'metrics.jsonl', run.run)
  assert 'metrics.jsonl: its first 2 lines' in run.refused()


def test_a_rate_in_the_metrics_is_no_number_of_the_run(made, tmp_path):
  run = made.copy(tmp_path / 'run', at=2)
  edited = (run.run / 'metrics.jsonl').read_text()
  assert '"tokens_per_second": ' in edited
  edited = edited.replace('"tokens_per_second": ', '"tokens_per_second": 1')
  (run.run / 'metrics.jsonl').write_text(edited)
  assert 'continuing from step 2' in run.goes_on()


ENV = {
  'no JSON': (lambda path: path.write_text('{'), 'not JSON'),
  'a list': (lambda path: path.write_text('[1]'), 'a JSON list'),
  'no fingerprints': (lambda v: v.update(fingerprints=None), 'fingerprints'),
  'a list of them': (lambda v: v.update(fingerprints=['x']), 'fingerprints'),
  'sessions': (lambda v: v.update(continued=3), 'continued'),
}


@pytest.mark.parametrize('kind', ENV)
def test_a_spoilt_env_is_refused(run, kind):
  change, word = ENV[kind]
  path = run.run / 'env.json'
  if kind in ('no JSON', 'a list'):
    change(path)
  else:
    trials.edit(path, change)
  error = run.refused()
  assert error.startswith(f'{path}: ') and word in error


@pytest.mark.parametrize(
  ['name', 'key'],
  [
    ('data', 'data.train'),
    ('judgements', 'data.train'),
    ('eval_data', 'data.eval'),
    ('tokenizer', 'tokenizer'),
    ('template', 'data.chat_template'),
    ('model.init_from', 'model.init_from'),
  ],
)
def test_another_fingerprint_in_env_is_refused(run, name, key):
  # Of any kind: another program may have written the file.
  change = {name: 3 if name == 'data' else 'f' * 64}
  trials.edit(
    run.run / 'env.json', lambda values: values['fingerprints'].update(change)
  )
  assert run.refused().startswith(f'config.{key}: ')


def test_an_edited_config_is_refused_with_and_without_its_flag(run):
  trials.edit(
    run.run / 'config.json', lambda values: values['loss'].update(beta=0.3)
  )
  error = run.refused()
  assert 'config.loss.beta is 0.3 there and 0.1 now' in error
  error = run.refused('--config.loss.beta=0.3')
  assert 'a checkpoint of another run' in error
  assert 'config.loss.beta is 0.1 there and 0.3 now' in error


def test_an_edited_model_is_refused(run):
  trials.edit(run.run / 'model.json', trials.turn)
  assert run.refused().startswith('config.model: ')


def test_another_precision_is_refused(run):
  error = run.refused('--config.precision.compute=bfloat16')
  assert 'config.precision.compute is "auto" there' in error


def renamed(steps):
  (steps / '1').rename(steps / '2')
  return 'it is step 1 under another number'


def flipped(steps):
  files = [p for p in (steps / '1' / 'params').rglob('*') if p.is_file()]
  trials.flip(max(files, key=lambda path: path.stat().st_size))
  return 'skipped, params/'


def recorded(steps):
  path = steps / '1' / 'meta' / 'metadata'
  path.write_text(path.read_text().replace('num_tokens', 'num_tokenz'))
  return 'its record does not match its digest'


@pytest.mark.parametrize('change', [renamed, flipped, recorded])
def test_the_only_step_changed_is_refused(run, change, capsys):
  word = change(run.run / 'checkpoints')
  before = trials.contents(run.run)
  code, out, error = run.start()
  assert code == 2 and word in out
  assert error.startswith(f'{run.run}/checkpoints: none of the steps ')
  assert trials.contents(run.run) == before


@pytest.mark.parametrize('item', ['params', 'opt_state', 'rng', 'data'])
def test_a_part_of_another_runs_step_is_refused(run, other, item):
  place = pathlib.Path('checkpoints') / '1' / item
  shutil.rmtree(run.run / place)
  shutil.copytree(other.run / place, run.run / place)
  code, out, error = run.start()
  assert code == 2 and f'skipped, {item}/' in out and 'none of the' in error


def test_a_copied_step_is_skipped_and_links_are_left_alone(run, tmp_path):
  steps = run.run / 'checkpoints'
  shutil.copytree(steps / '1', steps / '2')
  outside = tmp_path / 'outside'
  for name in ('set_aside', 'trash'):
    (outside / name / '2').mkdir(parents=True)
    (outside / name / '2' / 'kept').write_text(name)
    (steps / name).symlink_to(outside / name)
  before = trials.contents(outside)
  out = run.goes_on()
  assert '2: skipped, it is step 1 under another number' in out
  assert 'continuing from step 1' in out
  assert '2: moved to set_aside_here/2' in out
  assert trials.contents(outside) == before


def test_done_of_another_run_does_not_count(run, other):
  shutil.copy(other.run / 'DONE', run.run)
  assert 'continuing from step 1' in run.goes_on()


@pytest.mark.parametrize('name', ['table.npz', 'meta.json'])
def test_a_spoilt_token_cache_is_refused(run, name, tmp_path, monkeypatch):
  monkeypatch.setenv('DPO_JAX_CACHE', str(tmp_path / 'cache'))
  assert main_lib.main(['--mode=evaluate', f'--workdir={run.run}']) == 0
  path = next((tmp_path / 'cache' / 'tokens').glob(f'*/{name}'))
  trials.flip(path)
  error = run.refused()
  assert error.startswith(f'{path}: damaged') and 'made anew' in error
  shutil.rmtree(path.parent)


@pytest.mark.parametrize('kind', ['x64', 'matmul', 'XLA_FLAGS'])
def test_another_arithmetic_is_said(made, tmp_path, monkeypatch, kind):
  run = made.copy(tmp_path / 'run', at=2)
  settings = {
    'x64': lambda: jax.enable_x64(True),
    'matmul': lambda: jax.default_matmul_precision('highest'),
    'XLA_FLAGS': lambda: monkeypatch.context(),
  }
  with settings[kind]() as patched:
    if kind == 'XLA_FLAGS':
      patched.setenv('XLA_FLAGS', os.environ['XLA_FLAGS'] + ' ')
    out = run.goes_on()
  names = {'x64': 'jax_enable_x64', 'matmul': 'jax_default_matmul_precision'}
  name = names.get(kind, kind)
  assert 'not bitwise the same run any more: ' in out and f'{name}: ' in out


@pytest.mark.parametrize(
  ('name', 'old', 'new', 'says'),
  [
    ('config.json', '"batch_size"', '"batch_sizf"', 'config.json: holds a run'),
    ('env.json', '"tokenizer": "', '"tokenizer": "0', ' in env.json, '),
    ('model.json', '"vocab_size"', '"vocab_sizf"', "/model.json: key 'vocab_"),
  ],
)  # fmt: skip
def test_one_changed_letter_is_refused_by_the_name_of_its_file(
  run, name, old, new, says
):
  path = run.run / name
  text = path.read_text()
  assert old in text
  path.write_text(text.replace(old, new, 1))
  assert says in run.refused()
