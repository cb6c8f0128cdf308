"""--mode=sweep: runs as of their own, one compile, failures, restarts."""

import json
import os
import signal
import subprocess
import sys
import time

import experiment
import jax
import pytest
import runs

from dpo_jax import main as main_lib
from dpo_jax.run import evaluate
from dpo_jax.run import job as job_lib
from dpo_jax.storage import environment

NAMES = [
  'beta=0.1,seed=0',
  'beta=0.1,seed=1',
  'beta=0.3,seed=0',
  'beta=0.3,seed=1',
]
POINTS = ['--sweep.loss.beta=0.1,0.3', '--sweep.seed=0:2']


def sweep(path, folder, *arguments):
  """The exit code of a sweep of the experiment."""
  return main_lib.main(
    ['--mode=sweep', f'--config={path}', f'--workdir={folder}', *arguments]
  )


@pytest.fixture(scope='module')
def path(tmp_path_factory):
  return experiment.write(tmp_path_factory.mktemp('sweeps'))


@pytest.fixture(scope='module')
def whole(path, tmp_path_factory):
  """A finished sweep of four points, and the programs that it made."""
  folder, made = tmp_path_factory.mktemp('whole') / 'sweep', []
  make = job_lib._make_programs

  def counted(*args):
    made.append(make(*args))
    return made[-1]

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(job_lib, '_make_programs', counted)
    assert sweep(path, folder) == 0
  return folder, made


def test_a_sweep_is_a_folder_of_ordinary_runs(whole, path, tmp_path):
  folder, _ = whole
  listed = json.loads((folder / 'sweep.json').read_text())['points']
  assert [point['name'] for point in listed] == NAMES
  # The same point by a command of its own: equal to the bit.
  own = tmp_path / NAMES[3]
  assert (
    main_lib.main(
      [
        f'--config={path}',
        f'--workdir={own}',
        '--config.loss.beta=0.3',
        '--config.seed=1',
      ]
    )
    == 0
  )
  runs.same(folder, tmp_path, NAMES[3:])
  different = [runs.metrics(folder / name) for name in NAMES]
  assert all(a != b for i, a in enumerate(different) for b in different[:i])


def test_one_compile_and_one_pass_of_each_reference(whole):
  folder, made = whole
  assert len(made) == 1
  assert made[0]['train_step']._cache_size() == 1
  assert made[0]['init']._cache_size() == 1
  output = [
    (folder / 'sweep' / 'output' / f'{name}.txt').read_text() for name in NAMES
  ]
  # Random weights follow the seed, so there are two references for four runs.
  assert ['reference scores: ' in text for text in output] == [1, 1, 0, 0]
  assert len(list((folder / 'cache' / 'reference').glob('*.npz'))) == 2
  assert len(list((folder / 'cache' / 'tokens').iterdir())) == 1


def test_points_with_equal_first_weights_score_them_once(
  path, tmp_path, monkeypatch
):
  scored, score = [], evaluate._score

  def counted(job, params, *others):
    scored.append(jax.device_get(params))
    return score(job, params, *others)

  monkeypatch.setattr(evaluate, '_score', counted)
  # Random weights follow the seed, which is the same for these two. Each has
  # two further evaluations.
  points = ['--sweep.loss.beta=0.1,0.3']
  assert sweep(path, tmp_path / 's', *points) == 0
  assert len(scored) == 1 + 2 * 2
  scored.clear()
  assert sweep(path, tmp_path / 'other', '--sweep.seed=0:2') == 0
  assert len(scored) == 2 * 3


def test_a_finished_sweep_runs_nothing_again(whole, path, capsys):
  folder, _ = whole
  before = {p: p.stat().st_mtime_ns for p in folder.rglob('metrics.jsonl')}
  assert sweep(path, folder) == 0
  assert before == {p: p.stat().st_mtime_ns for p in before}
  assert '4 points: 4 done' in capsys.readouterr().out


def test_points_that_other_code_made_are_named(
  whole, path, capsys, monkeypatch
):
  folder, _ = whole
  env = json.loads((folder / NAMES[0] / 'env.json').read_text())
  monkeypatch.setattr(environment, 'commit', lambda: 'f' * 40)
  assert sweep(path, folder) == 0
  out = capsys.readouterr().out
  if env['git_commit']:  # a checkout, not an archive of the code
    line = f'4 points made by commit {env["git_commit"][:10]}, not by this code'
    assert f'{line}: {"; ".join(NAMES)}' in out.splitlines()


def test_the_status_is_a_table(whole, capsys):
  folder, _ = whole
  code = main_lib.main(['--mode=sweep', '--status', f'--workdir={folder}'])
  lines = capsys.readouterr().out.splitlines()
  assert code == 0 and lines[-1] == '4 points: 4 done'
  assert [line.split()[:3] for line in lines[1:5]] == [
    [name, 'done', '4/4'] for name in NAMES
  ]


def test_a_dry_run_writes_nothing(path, tmp_path, capsys):
  assert sweep(path, tmp_path / 'new', '--dry-run') == 0
  out = capsys.readouterr().out
  assert 'group 1, one compile: 4 points' in out and 'FLOPs in all' in out
  assert [line.strip() for line in out.splitlines()[1:5]] == NAMES
  assert not (tmp_path / 'new').exists()


def test_points_are_added_and_old_ones_keep_their_names(whole, path, capsys):
  folder, _ = whole
  # Three values of beta, one seed: one new point, two that are done.
  new = ['--sweep.loss.beta=0.1,0.3,0.5', '--sweep.seed=1,']
  code = sweep(path, folder, *new)
  assert code == 2 and 'empty' in capsys.readouterr().err
  code = sweep(path, folder, '--sweep.seed=1', '--sweep.loss.beta=0.1,0.3,0.5')
  out = capsys.readouterr().out
  assert code == 0 and '3 points: 3 done' in out
  assert out.count('done in') == 1 and 'seed=1,beta=0.5: done in' in out
  listed = json.loads((folder / 'sweep.json').read_text())['points']
  assert [p['name'] for p in listed] == [*NAMES, 'seed=1,beta=0.5']


def test_a_failure_ends_its_point_alone(path, tmp_path, capsys):
  points = ['--sweep.optim.learning_rate=1e-3,1e30,2e-3']
  assert sweep(path, tmp_path / 's', *points) == 1
  out = capsys.readouterr().out
  assert '3 points: 2 done, 1 failed' in out
  assert 'learning_rate=1e+30: failed, step ' in out
  # It is not tried again unless asked.
  assert sweep(path, tmp_path / 's', *points) == 1
  assert '[' not in capsys.readouterr().out.splitlines()[1]
  assert sweep(path, tmp_path / 's', *points, '--retry') == 1
  assert '/3] learning_rate=1e+30: failed' in capsys.readouterr().out


def test_a_run_of_another_config_is_named_and_left_alone(
  path, tmp_path, capsys
):
  own = tmp_path / 's' / 'beta=0.1'
  assert (
    main_lib.main(
      [f'--config={path}', f'--workdir={own}', '--config.loss.beta=0.7']
    )
    == 0
  )
  before = runs.contents(own)
  assert sweep(path, tmp_path / 's', '--sweep.loss.beta=0.1') == 1
  out = capsys.readouterr().out
  assert 'beta=0.1: foreign, config.loss.beta is 0.7 there and 0.1 now' in out
  assert runs.contents(own) == before


def test_shards_part_the_points(path, tmp_path, capsys):
  folder = tmp_path / 's'
  for i in range(3):
    assert sweep(path, folder, *POINTS, f'--sweep.shard={i}/3') == 0
  out = capsys.readouterr().out
  assert [out.count(f'{name}: done in') for name in NAMES] == [1] * 4
  assert [out.count(f'sweep of {n} points') for n in (1, 2)] == [2, 1]


@pytest.mark.parametrize(
  ('arguments', 'words'),
  [
    (['--sweep.shard=3/3'], ('--sweep.shard', '0 to N - 1')),
    (['--sweep.shard=x'], ('--sweep.shard', "'x'")),
    (['--sweep.shard=0/²'], ('--sweep.shard', "'0/²'")),
    (['--sweep.mode=vmaps'], ('--sweep.mode', "'vmap'")),
    (['--sweep.devices_per_point=0'], ('--sweep.devices_per_point',)),
    (['--sweep.cores_per_point=x'], ('--sweep.cores_per_point', "'x'")),
    (['--sweep.name=losses', '--sweep.seed=1'], ('--sweep.name', 'sweep.seed')),
    (['--sweep.name=x'], ('no function sweep_x()',)),
  ],
)
def test_bad_flags_start_nothing(path, tmp_path, capsys, arguments, words):
  assert sweep(path, tmp_path / 's', *arguments) == 2
  error = capsys.readouterr().err
  assert error.count('\n') == 1 and all(word in error for word in words), error
  assert not (tmp_path / 's').exists()


def start(path, folder, *arguments):
  """A process that runs the sweep of four points."""
  return subprocess.Popen(
    [
      *(sys.executable, '-m', 'dpo_jax.main', '--mode=sweep'),
      *(f'--config={path}', f'--workdir={folder}', *arguments),
    ],
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def wait_for(folder, text):
  """Waits until a line of some metrics.jsonl has the text."""
  for _ in range(1200):
    if any(text in p.read_text() for p in folder.glob('*/metrics.jsonl')):
      return
    time.sleep(0.1)
  raise AssertionError(f'no {text!r} in {folder}')


@pytest.mark.slow
def test_a_killed_process_s_point_is_taken_over(whole, path, tmp_path):
  reference, _ = whole
  folder = tmp_path / 's'
  first = start(path, folder)
  wait_for(folder, '"step": 2')
  # The second one waits for the point that the first has, and takes it over.
  second = start(path, folder)
  first.send_signal(signal.SIGKILL)
  first.wait()
  out, _ = second.communicate(timeout=300)
  assert second.returncode == 0, out
  assert '4 points: 4 done' in out
  runs.same(folder, reference, NAMES)


@pytest.mark.slow
def test_a_process_per_core_ends_with_the_same_folder(whole, path, tmp_path):
  reference, _ = whole
  folder = tmp_path / 's'
  made = start(path, folder, '--sweep.cores_per_point=1')
  out, _ = made.communicate(timeout=300)
  assert made.returncode == 0, out
  assert out.count('4 points: 4 done') == len(os.sched_getaffinity(0)), out
  runs.same(folder, reference, NAMES)


@pytest.mark.slow
def test_a_signal_ends_the_processes_of_all_cores(path, tmp_path):
  made = start(path, tmp_path / 's', '--sweep.cores_per_point=1')
  wait_for(tmp_path / 's', '"step": 2')
  made.send_signal(signal.SIGTERM)
  # The pipe is closed by the last of them.
  out, _ = made.communicate(timeout=300)
  assert made.returncode == 143, out
