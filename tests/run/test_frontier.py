"""frontier: files of a step, prompts, errors by prompt, one compile, a stop."""

import io
import json
import pathlib
import shutil
import types

import commands
import jax
import numpy as np
import pytest

from dpo_jax import main
from dpo_jax.run import frontier, sample, sampled_kl
from dpo_jax.run import session as sessions
from dpo_jax.run.preemption import Diverged, Preempted

METRICS = 'reward', 'kl', 'kl_cv', 'kl_mc', 'length'
FLAGS = '--config.sample.max_new_tokens=4', '--config.sample.batch_size=8'


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A finished run of two updates, both saved."""
  folder = tmp_path_factory.mktemp('frontier') / 'run'
  saved = '--config.train.save_every=1', '--config.train.keep_checkpoints=9'
  flags = [commands.CONFIG, *saved, f'--workdir={folder}']
  assert main.main([*flags, '--config.optim.learning_rate=0.01']) == 0
  return folder


@pytest.fixture
def copy(run, tmp_path):
  """A copy of it, to write in."""
  return shutil.copytree(run, tmp_path / 'run')


def command(workdir, *flags):
  return main.main(['--mode=frontier', f'--workdir={workdir}', *FLAGS, *flags])


def facts(workdir, step):
  return json.loads((workdir / f'frontier/step_{step}.json').read_text())


def contents(workdir):
  return {
    p.relative_to(workdir): p.read_bytes()
    for p in workdir.rglob('*')
    if p.is_file() and 'checkpoints' not in p.parts
  }


def test_files_of_a_step_agree_and_are_not_made_twice(copy, capsys):
  flags = '--num_samples=12', '--rewards=length,length_words', '--steps=0,2'
  assert command(copy, *flags) == 0
  assert '[2/2] run step 2: reward' in capsys.readouterr().out
  assert not (copy / 'frontier/step_1.json').exists()
  assert facts(copy, 0)['metrics']['kl'] == {'mean': 0, 'se': 0}
  assert facts(copy, 0)['metrics']['kl_cv'] == {'mean': 0, 'se': 0}
  assert facts(copy, 0)['metrics']['kl_mc'] == {'mean': 0, 'se': 0}
  got = facts(copy, 2)
  for key, value in (
    ('step', 2),
    ('reward', 'length'),
    ('num_samples', 12),
    ('temperature', 1),
    ('max_new_tokens', 4),
  ):
    assert got[key] == value
  assert got['metrics']['kl']['mean'] > 0
  with np.load(copy / 'per_example/frontier_2.npz') as arrays:
    arrays = dict(arrays)
  assert arrays['reward'].tolist() == arrays['length'].tolist()
  for name, metric in got['metrics'].items():
    assert metric['mean'] == pytest.approx(arrays[name].mean())
    error = frontier.clustered_se(arrays[name], arrays['prompt_id'])
    assert metric['se'] == pytest.approx(error)
  # Prompts and records are those of the run's own evaluation.
  with np.load(copy / 'per_example/eval_2.npz') as own:
    known = {*zip(own['uid'].tolist(), own['prompt_id'].tolist())}
  assert {*zip(arrays['uid'].tolist(), arrays['prompt_id'].tolist())} <= known
  lines = (copy / 'samples/frontier_2.jsonl').read_text().splitlines()
  samples = [json.loads(line) for line in lines]
  assert [s['kl'] for s in samples] == arrays['kl'].tolist()
  assert [s['kl_cv'] for s in samples] == arrays['kl_cv'].tolist()
  assert [s['num_tokens'] for s in samples] == arrays['length'].tolist()
  # Again: nothing is left to do, and nothing changes.
  before = contents(copy)
  assert command(copy, *flags) == 0
  assert '2 of 2 steps are there already' in capsys.readouterr().out
  assert contents(copy) == before
  # Another number of samples is another measurement.
  assert command(copy, '--num_samples=4', *flags[1:]) == 0
  assert 'of other settings, made again' in capsys.readouterr().out
  assert facts(copy, 2)['num_samples'] == 4


def test_equal_commands_give_equal_numbers_and_seeds_do_not(copy):
  flags = '--num_samples=8', '--steps=2', '--rewards=length'
  values = []
  for seed in ('0', '0', '1'):
    shutil.rmtree(copy / 'frontier', ignore_errors=True)
    assert command(copy, *flags, f'--config.sample.seed={seed}') == 0
    with np.load(copy / 'per_example/frontier_2.npz') as arrays:
      values.append(arrays['kl_mc'].tolist())
  assert values[0] == values[1] != values[2]


def test_estimates_equal_those_of_mode_sample(copy):
  # --mode=sample scores the same texts by other programs.
  prompt = '{"prompt": "What is 1 + 1? "}\n'
  path = copy.parent / 'prompts.jsonl'
  path.write_text(prompt * 2)
  flags = f'--config.sample.prompts={path}', '--config.sample.temperature=1'
  assert command(copy, *flags, '--num_samples=16', '--steps=2') == 0
  lines = (copy / 'samples/frontier_2.jsonl').read_text().splitlines()
  samples = [json.loads(line) for line in lines]
  assert len({s['completion'] for s in samples}) > 8
  with sessions.open_workdir(
    frontier.frontier_plan.tasks(
      str(copy),
      [(f[9:].split('=')[0], f.split('=', 1)[1]) for f in FLAGS],
      '2',
      ['lexicon'],
      16,
    )[0].config,
    str(copy),
    parts=(),
  ) as session:
    job = session.job
    sampler = sample.make_sampler(job)
    policy = sessions.policy(session, step='2')
    frozen = frontier.weights.frozen(job, with_reference=True)
    key = jax.device_put(frontier._key(job), sampler.settings[0].sharding)
    sampler = sampler._replace(settings=(key, *sampler.settings[1:]))
    tokens = frontier.datasets.encode_prompts(
      [('p', json.loads(prompt))], job.config, job.inputs.tokenizer
    )
    rows = sample.sample(
      sampler, policy.params, tokens, 16, reference=frozen.reference()
    )
  assert [r['completion'] for r in rows] == [s['completion'] for s in samples]
  np.testing.assert_allclose(
    [s['kl_mc'] for s in samples],
    [r['model_logp'] - r['reference_logp'] for r in rows],
    atol=2e-4,
  )


def test_runs_of_a_folder_share_their_programs(run, tmp_path, monkeypatch):
  for name in ('one', 'two'):
    shutil.copytree(run, tmp_path / 'sweep' / name)
  traced = []
  original = sampled_kl.token_kl

  def count(*args):
    traced.append(1)
    return original(*args)

  monkeypatch.setattr(sampled_kl, 'token_kl', count)
  assert command(tmp_path / 'sweep', '--num_samples=8', '--steps=1,2') == 0
  # Four steps of two runs: traced for the first of them.
  assert 1 <= len(traced) <= 2
  assert facts(tmp_path / 'sweep/one', 2) == facts(tmp_path / 'sweep/two', 2)


def test_a_signal_leaves_whole_files_and_the_command_goes_on(
  copy, monkeypatch, capsys
):
  draw, calls = frontier.draw, []

  def stopped(*args, **kwargs):
    calls.append(1)
    if len(calls) == 2:
      raise Preempted(15)
    return draw(*args, **kwargs)

  monkeypatch.setattr(frontier, 'draw', stopped)
  flags = '--num_samples=8', '--steps=0,1,2'
  assert command(copy, *flags) == 143
  names = {p.name for p in (copy / 'frontier').iterdir()}
  assert names == {'step_0.json'}
  assert 'stopped by SIGTERM' in capsys.readouterr().err
  assert command(copy, *flags) == 0
  assert len(calls) == 4 and facts(copy, 2)['step'] == 2


def test_a_value_that_is_not_finite_is_no_result():
  arrays = {'kl': np.array([1.0, np.nan])}
  with pytest.raises(Diverged, match='step 3: kl of a sample is not finite'):
    frontier._metrics(arrays, np.array([b'a', b'b']), pathlib.Path('run'), 3)


def test_errors_are_clustered_by_prompt():
  rng = np.random.default_rng(0)
  values = rng.normal(size=50)
  own = np.arange(50)
  # One value per prompt: the usual standard error.
  want = values.std(ddof=1) / np.sqrt(50)
  assert frontier.clustered_se(values, own) == pytest.approx(want)
  # Each prompt four times with one value: as if it were there once.
  repeated = frontier.clustered_se(np.repeat(values, 4), np.repeat(own, 4))
  assert repeated == pytest.approx(want)
  assert frontier.clustered_se(values, np.zeros(50)) is None


def test_prompts_are_spread_evenly_over_the_records(copy):
  store = types.SimpleNamespace(
    table=types.SimpleNamespace(
      prompts=np.array([b'p%d' % i for i in range(9)]),
      uids=np.array([b'u%d' % i for i in range(9)]),
    ),
    __getitem__=None,
  )

  class Store(list):
    table = store.table

  part = types.SimpleNamespace(
    store=Store(types.SimpleNamespace(prompt=np.array([i])) for i in range(9)),
    indices=np.array([1, 3, 5, 7, 8]),
  )
  options = types.SimpleNamespace(prompts='', num_prompts=0, seed=0)
  job = types.SimpleNamespace(
    config=types.SimpleNamespace(sample=options),
    inputs=types.SimpleNamespace(evaluation=part),
  )
  got = frontier._prompts(job, 12)
  counts = np.bincount([int(p[0]) for p in got.tokens], minlength=9)
  assert counts[[1, 3, 5, 7, 8]].tolist().count(3) == 2 and counts.sum() == 12
  assert [u.decode()[1:] for u in got.uid] == [str(p[0]) for p in got.tokens]
  options.num_prompts = 2
  assert {int(p[0]) for p in frontier._prompts(job, 12).tokens} == {1, 3}


def test_progress_says_what_is_left(monkeypatch):
  out = io.StringIO()
  monkeypatch.setattr(frontier.time, 'monotonic', iter((0, 10)).__next__)
  monkeypatch.setattr('sys.stdout', out)
  one = {'mean': 1.0, 'se': None}
  progress = frontier._Progress(4)
  progress.say('r', 3, dict.fromkeys(METRICS, one))
  assert out.getvalue().endswith('0:00:30 left\n')
