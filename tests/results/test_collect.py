"""Reading run directories: what is found, what is tolerated, what is not."""

import hashlib

import numpy as np
import pytest

from dpo_jax.results import collect, run_files
from dpo_jax.storage import run_dir, writers
from dpo_jax.types import InputError


def test_runs_are_found_at_any_depth_and_once(make_run, tmp_path):
  first = make_run('sweep/a/x')
  second = make_run('sweep/y', {'seed': 1})
  (second / 'checkpoints' / '10').mkdir(parents=True)
  (tmp_path / 'sweep' / 'link').symlink_to(tmp_path / 'sweep')  # a loop
  model = tmp_path / 'sweep' / 'model'  # a Hugging Face folder is no run
  model.mkdir()
  (model / 'config.json').write_text('{}')
  runs = collect.collect([tmp_path / 'sweep', first])
  assert [run.path for run in runs] == [first, second]
  assert [run.order for run in runs] == [0, 0]


def test_a_linked_run_is_found(make_run, tmp_path):
  run = make_run('elsewhere/a')
  (tmp_path / 'runs').mkdir()
  (tmp_path / 'runs' / 'a').symlink_to(run)
  assert [each.path for each in collect.collect([tmp_path / 'runs'])] == [run]


def test_a_run_that_measured_nothing_yet_is_not_dropped(make_run, tmp_path):
  run = make_run('a', done=False)
  (run / 'metrics.jsonl').unlink()
  (run / 'env.json').write_text('{}')
  (read,) = collect.collect([tmp_path / 'a'])
  assert read.records == {} and not read.done


def test_read_run(make_run):
  path = make_run('a', {'seed': 3}, final=0.37)
  run = collect.read_run(path)
  assert run.done and run.torn_lines == 0 and run.config['seed'] == 3
  assert list(run.records['eval']) == [0, 10]
  assert run.records['eval'][10]['loss'] == 0.37
  assert 'grad_norm' not in run.records['train'][5]  # null
  for name in ('config.json', 'metrics.jsonl'):
    want = hashlib.sha256((path / name).read_bytes()).hexdigest()
    assert run.digests[name] == want


@pytest.mark.parametrize(
  'tail',
  ['{"step": 11, "split": "tra', '\0' * 40, '{"step": 11, "los\xe9'],
  ids=['cut', 'nul', 'inside a character'],
)
def test_a_torn_last_line_is_counted(make_run, tail):
  path = make_run('a')
  with open(path / 'metrics.jsonl', 'ab') as file:
    file.write(tail.encode()[:-1] if '\xe9' in tail else tail.encode())
  run = collect.read_run(path)
  assert run.torn_lines == 1
  assert list(run.records['eval']) == [0, 10]


def test_a_whole_last_line_without_newline_counts(make_run):
  path = make_run('a', tail='{"step": 20, "split": "eval", "loss": 0.3}')
  run = collect.read_run(path)
  assert run.torn_lines == 0
  assert run.records['eval'][20] == {'loss': 0.3}


def test_what_the_storage_layer_writes_is_read(tmp_path):
  config = {'seed': 4, 'loss': {'beta': 1.0, 'terms': {'sigmoid': 1.0}}}
  run = run_dir.RunDir(tmp_path / 'a')
  run.create_or_continue(config)
  assert not collect.read_run(run.path).done
  with writers.MetricWriter(run.path, total_steps=2) as writer:
    writer.write(0, 'eval', {'loss': 0.7, 'kl': 0.0})
    writer.write(2, 'eval', {'loss': float('nan'), 'kl': float('-inf')})
  score = np.ones(3, np.float32)
  scores = dict.fromkeys(('policy_chosen', 'policy_rejected'), score)
  scores |= dict.fromkeys(('reference_chosen', 'reference_rejected'), score)
  uid = np.array(['a', 'b', 'b'])
  run.write_per_example('eval_2', {'uid': uid, **scores})
  run.mark_done(step=2)
  read = collect.read_run(run.path)
  assert read.done and read.config == config
  assert read.records['eval'][0] == {'loss': 0.7, 'kl': 0.0}
  assert np.isnan(read.records['eval'][2]['loss'])
  assert read.records['eval'][2]['kl'] == float('-inf')
  assert list(read.examples.uid) == ['a', 'b', 'b']
  # more steps: the run goes on, and its old mark no longer counts
  text = (run.path / 'config.json').read_text()
  (run.path / 'config.json').write_text(text.replace('4', '5'))
  assert not collect.read_run(run.path).done
  run.close()


def test_of_a_step_that_is_there_twice_the_later_line_counts():
  data = b''.join(
    b'{"step": 4, "split": "eval", "loss": %d}\r\n' % loss for loss in (1, 2)
  )
  records, torn = run_files.parse_metrics(data, 'm')
  assert records['eval'][4]['loss'] == 2 and torn == 0


@pytest.mark.parametrize(
  'line, problem',
  [
    ('{"step": 1, "split": "tra', 'not JSON'),
    ('[1, 2]', 'a JSON list, not an object'),
    ('{"split": "eval", "loss": 1}', 'step is None'),
    ('{"step": -1, "split": "eval"}', 'step is -1'),
    ('{"step": true, "split": "eval"}', 'step is True'),
    ('{"step": 1, "loss": 1}', 'split is None'),
    ('{"step": 1, "split": "eval", "loss": "low"}', "loss is 'low'"),
    ('\udcff', 'not JSON'),
    ('[' * 100_000, 'not JSON'),
  ],
)
def test_a_bad_line_is_named(tmp_path, make_run, line, problem):
  path = make_run('a')
  good = (path / 'metrics.jsonl').read_bytes()
  bad = line.encode('utf-8', 'surrogateescape') + b'\n'
  (path / 'metrics.jsonl').write_bytes(good + bad + good)
  with pytest.raises(InputError) as caught:
    collect.collect([tmp_path])
  message = str(caught.value)
  where = f'{path}/metrics.jsonl:5: not a line of metrics'
  assert message.startswith(f'{where}: {problem}')
  assert '; fix: ' in message and '\n' not in message


@pytest.mark.parametrize('text', ['', '{', '[]', '{"seed": [1]}', '\ufeffx'])
def test_a_bad_config_is_named(make_run, text):
  path = make_run('a')
  (path / 'config.json').write_text(text)
  with pytest.raises(InputError, match=r'^/.*/a/config\.json: .*; fix: '):
    collect.read_run(path)


def test_numbers_that_no_float_holds_are_infinite_not_a_crash():
  line = b'{"step": 1, "split": "eval", "loss": 1%s, "kl": NaN}\n' % (
    b'0' * 400
  )
  records, _ = run_files.parse_metrics(line, 'm')
  assert records['eval'][1]['loss'] == float('inf')


def test_missing_folders_name_the_nearest(make_run, tmp_path):
  make_run('quickstart')
  with pytest.raises(InputError, match='no such folder.*quickstart'):
    collect.collect([tmp_path / 'quikstart'])
  (tmp_path / 'empty').mkdir()
  with pytest.raises(InputError, match='empty: no runs found; fix: '):
    collect.collect([tmp_path / 'quickstart', tmp_path / 'empty'])
  with pytest.raises(InputError, match='not a folder'):
    collect.collect([tmp_path / 'quickstart' / 'DONE'])


def test_per_example_values_are_as_they_were_saved(make_scored_run):
  path = make_scored_run('a', margins=[2.0, -1.0], without=['loss'])
  examples = collect.read_run(path).examples
  # The fixture's rewards: beta = 0.1 times 3/4 and -1/4 of the margin.
  arrays = examples.arrays
  np.testing.assert_allclose(arrays['reward_chosen'], [0.15, -0.075])
  np.testing.assert_allclose(arrays['reward_rejected'], [-0.05, 0.025])
  assert examples.step == 10 and 'loss' not in arrays
  assert 'prompt_id' not in arrays  # no number


def test_per_example_values_of_completions_are_read(make_run):
  arrays = {'uid': np.array(['a', 'b']), 'reward': np.float32([0.5, 1])}
  examples = collect.read_run(make_run('a', arrays=arrays)).examples
  assert list(examples.arrays) == ['reward']
  assert examples.arrays['reward'].dtype == np.float64


def test_per_example_scores_of_an_earlier_step_are_not_used(make_scored_run):
  path = make_scored_run('a', margins=[2.0, -1.0], step=5)
  assert collect.read_run(path).examples is None


def test_damaged_per_example_files_are_named(make_scored_run):
  path = make_scored_run('a', margins=[2.0, -1.0])
  file = path / 'per_example' / 'eval_10.npz'
  arrays = dict(np.load(file))
  content = file.read_bytes()
  for damage in (b'', b'PK\3\4', content[: len(content) // 2], content[::-1]):
    file.write_bytes(damage)
    with pytest.raises(InputError, match=r'eval_10\.npz: not a readable npz'):
      collect.read_run(path)
  np.savez(file, **{**arrays, 'uid': arrays['uid'][:1]})
  with pytest.raises(InputError, match='1 uids but scores of shapes'):
    collect.read_run(path)
  np.savez(file, uid=np.array([{}], dtype=object))  # a pickle is never read
  assert collect.read_run(path).examples is None
  np.savez(file, **{**arrays, 'uid': np.array([{}, {}], dtype=object)})
  with pytest.raises(InputError, match='not a readable npz'):
    collect.read_run(path)


def grouped(tmp_path):
  groups = collect.group_runs(collect.collect([tmp_path]))
  return sorted(sorted(r.path.name for r in group.runs) for group in groups)


def test_keys_that_change_no_number_never_split_a_group(make_run, tmp_path):
  make_run('a', {'train.save_every': 1, 'data.cache_dir': '/x', 'seed': 0})
  make_run('b', {'mesh.fsdp': 2, 'train.keep_checkpoints': 9, 'seed': 1})
  make_run('c', {'eval.num_samples': 4, 'sample.seed': 3, 'seed': 2})
  make_run('d', {'optim.learning_rate': 0.25, 'seed': 0})
  assert grouped(tmp_path) == [['a', 'b', 'c'], ['d']]


def test_a_missing_key_is_its_default(make_run, tmp_path):
  make_run('old', {'seed': 0})
  make_run('new', {'data.strict': False, 'loss.ld_alpha': None, 'seed': 1})
  make_run('other', {'data.strict': True, 'seed': 1})
  assert grouped(tmp_path) == [['new', 'old'], ['other']]


def test_runs_that_start_from_a_run_of_their_own_seed_are_siblings(
  make_run, tmp_path
):
  for seed in (0, 1):
    make_run(f'sft{seed}', {'stage': 'sft', 'seed': seed})
    (tmp_path / f'sft{seed}' / 'model.json').write_text('{}')
  make_run('odd', {'stage': 'sft', 'optim.learning_rate': 0.5, 'seed': 2})
  (tmp_path / 'odd' / 'model.json').write_text('{}')
  for seed, start in ((0, 'sft0'), (1, 'sft1'), (2, 'odd')):
    make_run(f'dpo{seed}', {'model.init_from': start, 'seed': seed})
  make_run('crossed', {'model.init_from': 'sft0', 'seed': 3})
  assert grouped(tmp_path) == [
    ['crossed'],
    ['dpo0', 'dpo1'],
    ['dpo2'],
    ['odd'],
    ['sft0', 'sft1'],
  ]


def test_runs_in_a_bucket(make_run, tmp_path, bucket):
  make_run('sweep/a')
  make_run('sweep/b', {'seed': 1, 'model.init_from': 'foo://x'})
  for file in (tmp_path / 'sweep').rglob('*'):
    if file.is_file():
      path = bucket / file.relative_to(tmp_path)
      path.write_bytes(file.read_bytes())
  local = collect.collect([tmp_path / 'sweep'])
  runs = collect.collect([bucket / 'sweep'])
  assert [str(r.path) for r in runs] == [f'mem://bkt/sweep/{x}' for x in 'ab']
  assert [r.digests for r in runs] == [r.digests for r in local]
  assert len(collect.group_runs(runs)) == len(collect.group_runs(local))
  with pytest.raises(InputError, match="did you mean 'mem://bkt/sweep'"):
    collect.collect([bucket / 'sweeep'])
