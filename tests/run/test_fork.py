"""fork: a new run from a run's whole state, under a changed config."""

import json

import pytest
from commands import CONFIG

from dpo_jax import main as main_lib
from dpo_jax import tree
from dpo_jax.storage import checkpoints

CONSTANT = [
  CONFIG,
  '--config.optim.schedule=constant',
  '--config.train.save_every=1',
  '--config.train.keep_checkpoints=9',
]


def train(workdir, *flags, given=CONSTANT):
  return main_lib.main([*given, f'--workdir={workdir}', *flags])


def state(workdir):
  """Step, fingerprint of every leaf and counts of the last checkpoint."""
  with checkpoints.Checkpoints(workdir / 'checkpoints') as saved:
    items = ('params', 'opt_state', 'loss_state', 'rng', 'data')
    last = saved.restore_latest(dict.fromkeys(items))
  return last.step, tree.fingerprint(last.items), last.meta['num_tokens']


def last_evaluation(workdir):
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  line = json.loads(lines[-1])
  assert line['split'] == 'eval'
  return line


def files(workdir):
  return {p: p.read_bytes() for p in workdir.rglob('*') if p.is_file()}


@pytest.fixture(scope='module')
def long(tmp_path_factory):
  """An uninterrupted run of four updates."""
  workdir = tmp_path_factory.mktemp('long') / 'run'
  assert train(workdir, '--config.train.num_steps=4') == 0
  return workdir


@pytest.fixture(scope='module')
def short(tmp_path_factory):
  """The same run of two updates."""
  workdir = tmp_path_factory.mktemp('short') / 'run'
  assert train(workdir, '--config.train.num_steps=2') == 0
  return workdir


@pytest.mark.parametrize('at', ['', '@1', '@2'])
def test_a_fork_with_more_steps_is_the_longer_run_bit_for_bit(
  long, short, tmp_path, at, capsys
):
  before = files(short)
  new = tmp_path / 'new'
  flags = [f'--fork={short}{at}', '--config.train.num_steps=4']
  assert train(new, *flags, given=[]) == 0
  assert (
    'config.train.num_steps is 2 there and 4 now' in capsys.readouterr().out
  )
  assert state(new) == state(long)
  assert last_evaluation(new) == last_evaluation(long)
  assert files(short) == before
  # Without the flag, it is a run like any other.
  assert train(new, '--config.train.num_steps=4') == 0
  assert 'this run is done' in capsys.readouterr().out


def test_a_run_may_grow_if_its_schedule_does_not_depend_on_it(
  long, tmp_path, capsys
):
  for steps in (2, 3, 4):
    assert train(tmp_path / 'run', f'--config.train.num_steps={steps}') == 0
  assert state(tmp_path / 'run') == state(long)
  assert last_evaluation(tmp_path / 'run') == last_evaluation(long)
  capsys.readouterr()
  assert train(tmp_path / 'run', '--config.train.num_steps=3') == 2
  error = capsys.readouterr().err
  assert 'config.train.num_steps is 4 there and 3 now' in error


def test_a_linear_schedule_does_not_grow(tmp_path, capsys):
  flags = ['--config.optim.schedule=linear', '--config.train.num_steps=2']
  assert train(tmp_path / 'run', *flags) == 0
  flags[1] = '--config.train.num_steps=4'
  assert train(tmp_path / 'run', *flags) == 2
  error = capsys.readouterr().err
  assert 'config.train.num_steps is 2 there and 4 now' in error


def test_another_setting_starts_from_the_same_state(short, tmp_path, capsys):
  flags = [f'--fork={short}@1', '--config.loss.beta=0.5', '--config.seed=0']
  flags += ['--config.train.batch_size=4', '--config.train.num_steps=3']
  assert train(tmp_path / 'new', *flags, given=[]) == 0
  out = capsys.readouterr().out
  assert 'config.loss.beta is 0.1 there and 0.5 now' in out
  record = json.loads((tmp_path / 'new' / 'fork.json').read_text())
  assert (record['run'], record['step']) == (str(short), 1)
  assert record['num_prompts'] == 8 and not record['same_order']
  with checkpoints.Checkpoints(tmp_path / 'new' / 'checkpoints') as saved:
    assert saved.steps()[0] == 1  # its own copy
  # The reference is the run's: the loss at the start is not ln 2.
  assert train(tmp_path / 'new', *flags, given=[]) == 0
  assert 'this run is done' in capsys.readouterr().out


@pytest.mark.parametrize(
  ['flag', 'word'],
  [
    ('--config.adapter.rank=2', 'config.adapter.rank'),
    ('--config.model.vocab_size=640', 'config.model.vocab_size'),
    ('--config.loss.tr_dpo=true', 'config.loss.tr_dpo'),
    ('--config.optim.name=lion', 'config.optim.name'),
    ('--config.optim.moments_dtype=bfloat16', 'config.optim.moments_dtype'),
    ('--config.data.eval_pairs=4', 'config.data.eval_pairs'),
    ('--config.data.add_eos=false', 'config.data.train'),
    ('--config.seed=3', 'config.model'),  # random weights follow the seed
    ('--config.train.num_steps=1', 'config.train.num_steps'),
  ],
)
def test_what_a_fork_keeps_is_refused(short, tmp_path, capsys, flag, word):
  new = tmp_path / 'new'
  extra = ['--config.loss.tr_tau=1'] if 'tr_dpo' in flag else []
  code = train(new, f'--fork={short}@1', flag, *extra, given=[])
  error = capsys.readouterr().err
  assert code == 2 and error.count('\n') == 1 and word in error, error
  assert not new.exists()


def test_a_fork_of_nothing_or_into_another_run_is_refused(
  short, long, tmp_path, capsys
):
  for workdir, origin, words in [
    (tmp_path / 'new', f'{short}@7', 'has no step 7'),
    (tmp_path / 'new', tmp_path / 'none', 'not a run'),
    (long, short, 'is not the origin'),
  ]:
    code = train(
      workdir, f'--fork={origin}', '--config.train.num_steps=4', given=[]
    )
    error = capsys.readouterr().err
    assert code == 2 and words in error, error
    assert error.count('\n') == 1
  assert not (tmp_path / 'new').exists()
