"""sample: batches, files and refusals; sampling leaves training as it is."""

import json
import types

import numpy as np
import pytest
import small_models

from dpo_jax import config as config_lib
from dpo_jax import main
from dpo_jax.data.text import encoders
from dpo_jax.run import sample
from dpo_jax.storage import run_dir
from dpo_jax.types import InputError

EXPERIMENT = 'experiments/stories_dpo.py:runlocal'


def command(workdir, *flags, mode='sample', experiment=EXPERIMENT):
  return main.main(
    [
      f'--config={experiment}',
      f'--workdir={workdir}',
      f'--mode={mode}',
      '--config.sample.max_new_tokens=6',
      *(f'--config.{flag}' for flag in flags),
    ]
  )


def lines(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


def one_file(workdir, pattern):
  (path,) = (workdir / 'samples').glob(pattern)
  return path


def test_samples_of_a_file_do_not_depend_on_batch_or_neighbours(
  tmp_path, capsys
):
  # The long prompt goes to another batch, of a larger padded length.
  prompts = ['Hi', 'x' * 40, 'Once', 'upon a time']
  path = tmp_path / 'prompts.jsonl'
  path.write_text(''.join(json.dumps({'prompt': p}) + '\n' for p in prompts))
  flags = f'sample.prompts={path}', 'sample.num_samples=2', 'mesh.tensor=2'
  assert command(tmp_path / 'all', *flags, 'sample.batch_size=8') == 0
  assert '8 of 8 samples' in capsys.readouterr().out
  samples = [lines(one_file(tmp_path / 'all', 'step_0_t1_seed0_*'))]
  assert [s['prompt'] for s in samples[0]] == list(np.repeat(prompts, 2))
  assert [s['seed'] for s in samples[0]] == list(range(8))
  flags += 'sample.num_prompts=1', 'sample.batch_size=4'
  assert command(tmp_path / 'one', *flags) == 0
  samples.append(lines(one_file(tmp_path / 'one', 'step_0_*')))
  assert len(samples[1]) == 2
  for one, other in zip(*samples):
    assert one['token_ids'] == other['token_ids']
    assert len(one['logps']) == one['num_tokens'] == len(one['token_ids'])
    assert one['logp'] == pytest.approx(sum(one['logps']))
  assert len({tuple(s['token_ids']) for s in samples[0]}) == 8


def test_samples_at_evaluations_change_no_bit_of_training(tmp_path):
  for name, flags in (('with', ['eval.num_samples=3']), ('without', [])):
    assert command(tmp_path / name, *flags, mode='train') == 0
  metrics = [
    [
      {k: v for k, v in line.items() if 'per_second' not in k}
      for line in lines(tmp_path / name / 'metrics.jsonl')
    ]
    for name in ('with', 'without')
  ]
  for line, other in zip(*metrics, strict=True):
    assert line['loss'] == other['loss']
    assert line.get('grad_norm') == other.get('grad_norm')
  for step in (0, 2):
    assert len(lines(one_file(tmp_path / 'with', f'eval_{step}_*'))) == 3
  assert not (tmp_path / 'without/samples').exists()


def write_prompts(path, prompts):
  path.write_text(''.join(json.dumps({'prompt': p}) + '\n' for p in prompts))
  return f'sample.prompts={path}'


def test_no_id_without_a_token_is_drawn(tmp_path):
  # 259 tokens, 400 rows: a third of the draws of a random model.
  model = small_models.write(tmp_path / 'm', vocab_size=400)
  flags = [flag.removeprefix('--config.') for flag in model]
  flags += ['model.allow_larger_vocab', 'sample.num_samples=4']
  flags += [write_prompts(tmp_path / 'p.jsonl', ['a', 'bc'])]
  for number, more in enumerate(
    ([], ['sample.top_k=390'], ['sample.top_p=0.99'], ['sample.min_p=0.001'])
  ):
    workdir = tmp_path / f'run{number}'
    assert command(workdir, *flags, *more) == 0
    drawn = lines(one_file(workdir, 'step_0_*'))
    ids = [i for row in drawn for i in row['token_ids']]
    assert len(ids) > 30 and max(ids) < 259
    for row in drawn:
      # The policy is that of the tokens; the model has the other rows too.
      assert row['logp'] > row['model_logp'] + 0.2 * row['num_tokens']
  flags = [
    *flags[:-2],
    'eval.num_samples=4',
    'model.init_from=' + str(tmp_path / 'm'),
  ]
  assert command(tmp_path / 'run', *flags, mode='train') == 0
  for step in (0, 2):
    for row in lines(one_file(tmp_path / 'run', f'eval_{step}_*')):
      assert max(row['token_ids']) < 259


def test_ids_between_the_tokens_are_no_tokens():
  tokenizer = types.SimpleNamespace(known_ids=frozenset([0, 1, 3, 9]))
  known = sample.known(tokenizer, 5)
  np.testing.assert_array_equal(known, [True, True, False, True, False])
  assert sample.known(encoders.ByteTokenizer(), 259) is None


def test_each_line_has_the_choices_and_the_references_score(tmp_path):
  run, prompts = (
    tmp_path / 'run',
    write_prompts(tmp_path / 'p.jsonl', ['Hi', 'x' * 40]),
  )
  assert command(run, 'eval.num_samples=2', mode='train') == 0
  # Step 0: the policy is the reference.
  for row in lines(one_file(run, 'eval_0_*')):
    assert row['reference_logp'] == pytest.approx(row['model_logp'], abs=1e-4)
  choices = 'sample.temperature=0.7', 'sample.top_k=50', 'sample.seed=5'
  assert command(run, prompts, *choices) == 0
  rows = lines(one_file(run, 'step_2_t0.7_k50_seed5_*'))
  assert len(rows) == 2
  for row in rows:
    assert (row['temperature'], row['top_k'], row['top_p']) == (0.7, 50, 1.0)
    assert (row['min_p'], row['sample_seed'], row['max_new_tokens']) == (
      0,
      5,
      6,
    )
    assert row['stop_ids'] == [257]
    assert bytes(row['prompt_token_ids'][1:]).decode() == row['prompt']
    assert len(row['prompt_id']) == 32
    # The update moved the policy, but not far.
    assert 0 < abs(row['reference_logp'] - row['model_logp']) < 3
  # The reference alone gives the same scores: its run has no checkpoint.
  assert command(tmp_path / 'start', prompts, 'sample.temperature=0') == 0
  for row in lines(one_file(tmp_path / 'start', 'step_0_t0_*')):
    assert row['reference_logp'] == pytest.approx(row['model_logp'], abs=1e-4)


def test_a_run_without_a_reference_says_so(tmp_path):
  experiment = 'experiments/quickstart.py:stage=sft,runlocal'
  flags = write_prompts(tmp_path / 'p.jsonl', ['a']), 'mesh.data=8'
  assert command(tmp_path / 'run', *flags, experiment=experiment) == 0
  (row,) = lines(one_file(tmp_path / 'run', 'step_0_*'))
  assert row['reference_logp'] is None


def test_samples_are_never_overwritten(tmp_path):
  run, prompts = tmp_path / 'run', write_prompts(tmp_path / 'p.jsonl', ['Hi'])
  other = write_prompts(tmp_path / 'q.jsonl', ['Ho'])
  commands = [
    (prompts,),
    (prompts, 'sample.seed=1'),
    (prompts, 'sample.temperature=0.5'),
    (prompts, 'sample.top_p=0.9'),
    (prompts, 'sample.num_samples=2'),
    (other,),
  ]
  contents = {}
  for flags in commands:
    assert command(run, *flags) == 0
    found = {path: path.read_bytes() for path in (run / 'samples').iterdir()}
    assert contents.items() <= found.items()
    assert len(found) == len(contents) + 1
    contents = found
  # The same again: the same bytes, under the same name.
  assert command(run, prompts) == 0
  assert len(list((run / 'samples').iterdir())) == len(contents)
  # Other content under a name that is taken gets a name of its own.
  directory = run_dir.RunDir(run)
  for number, end in ((1, 'x.jsonl'), (2, 'x_2.jsonl'), (3, 'x_3.jsonl')):
    assert directory.write_samples('x', [{'n': number}]).endswith(end)


def test_sampling_of_a_file_reads_no_other_data(tmp_path):
  experiment = tmp_path / 'experiment.py'
  experiment.write_text(
    'from dpo_jax import config as c\n'
    'def get_config(arg=""):\n'
    '  import importlib.util as u\n'
    '  s = u.spec_from_file_location("e", "experiments/stories_dpo.py")\n'
    '  m = u.module_from_spec(s); s.loader.exec_module(m)\n'
    '  config = m.get_config("runlocal")\n'
    '  config.data.train = "gone.jsonl"\n'
    '  return config\n'
  )
  prompts = write_prompts(tmp_path / 'p.jsonl', ['Hi'])
  path = str(experiment)
  assert command(tmp_path / 'run', prompts, experiment=path) == 0
  assert command(tmp_path / 'run', experiment=path) == 2  # held-out prompts
  held_out = tmp_path / 'eval.jsonl'
  row = {'prompt': 'p', 'chosen': 'yes', 'rejected': 'no'}
  held_out.write_text((json.dumps(row) + '\n') * 8)
  flags = [f'data.eval={held_out}', 'data.drop_duplicates=False']
  assert command(tmp_path / 'run', *flags, experiment=path) == 0
  run = tmp_path / 'evaluated'
  assert command(run, *flags, experiment=path, mode='evaluate') == 0
  assert command(run, *flags, experiment=path, mode='plan') == 2


@pytest.mark.parametrize(
  ('flag', 'words'),
  [
    ('sample.top_p=1.5', 'config.sample.top_p: 1.5'),
    ('sample.top_p=0', 'config.sample.top_p: 0'),
    ('sample.min_p=1', 'config.sample.min_p: 1'),
    ('sample.max_new_tokens=0', 'config.sample.max_new_tokens: 0'),
    ('sample.temperature=-1', 'config.sample.temperature: -1'),
    ('sample.prompts=/nowhere.jsonl', '/nowhere.jsonl'),
  ],
)
def test_refused_in_one_line_before_anything(tmp_path, capsys, flag, words):
  assert command(tmp_path / 'run', flag) == 2
  message = capsys.readouterr().err
  assert message.count('\n') == 1 and words in message and 'fix:' in message
  assert not (tmp_path / 'run').exists()


def test_greedy_refuses_a_filter_that_it_would_not_use():
  config = config_lib.load(EXPERIMENT, [('sample.temperature', '0')])
  config_lib.validate(config)
  config.sample.top_k = 5
  with pytest.raises(InputError, match='sample.top_k: 5 is not used'):
    config_lib.validate(config)


def test_stop_texts_are_single_tokens():
  tokenizer = encoders.ByteTokenizer()
  assert sample.stop_ids(tokenizer, '') == [257]  # EOS
  assert sample.stop_ids(tokenizer, ('\n', '<|bos|>')) == [10, 256, 257]
  with pytest.raises(InputError, match="'ab' is 2 tokens of byte"):
    sample.stop_ids(tokenizer, 'ab')


def test_learned_positions_are_not_passed():
  class Model:
    learned_positions, max_positions, ropes = True, 10, ()

  config = config_lib.load(EXPERIMENT, [('sample.max_new_tokens', '6')])
  inputs = types.SimpleNamespace(model=Model)
  job = types.SimpleNamespace(config=config, inputs=inputs)
  sample.check_lengths(job, [np.arange(4)])
  with pytest.raises(InputError, match='6 after a prompt of 5 tokens'):
    sample.check_lengths(job, [np.arange(4), np.arange(5)])
