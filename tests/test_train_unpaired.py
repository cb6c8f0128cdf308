"""train: unpaired and ranked data through the command; files and tables."""

import json
import pathlib

import numpy as np
import pytest

from dpo_jax import main as main_lib
from dpo_jax import tree
from dpo_jax.results import __main__ as results_main
from dpo_jax.storage import checkpoints

ROOT = pathlib.Path(__file__).resolve().parents[1]
CONFIG = f'--config={ROOT}/experiments/quickstart.py:stage=dpo,runlocal'
NAMES = ('Ann', 'Bob', 'Cy', 'Di', 'Ed')


def rows(kind, num=60):
  """JSON lines of judgements: good answers are long and are preferred."""
  lines = []
  for i in range(num):
    prompt = f'{NAMES[i % 5]} asks {i}?'
    if kind == 'unpaired':
      row = {'completion': ' yes' * (1 + i % 2) + '.', 'label': bool(i % 2)}
    elif kind == 'ranked':
      count = 3 + i % 2
      answers = [' no' + '!' * (k + 1) for k in range(count)]
      row = {'completions': answers, 'scores': [k / 2 for k in range(count)]}
    else:
      prompt = 'Shall we?' if kind == 'one prompt' else prompt
      row = {'chosen': ' yes, please.', 'rejected': f' no {i}'}
    lines.append(json.dumps({'prompt': prompt, **row}))
  return '\n'.join(lines) + '\n'


def run(folder, loss, kind, *overrides, mode='train'):
  path = folder / f'{kind}.jsonl'
  path.write_text(rows(kind))
  terms = [
    f'loss.terms.{name}={int(name == loss)}' for name in {loss, 'sigmoid'}
  ]
  if kind == 'one prompt':  # nothing could be split off
    overrides += (f'data.eval={path}',)
  keys = [*terms, f'data.train={path}', 'data.max_length=32', *overrides]
  return main_lib.main(
    [CONFIG, f'--workdir={folder / loss}', f'--mode={mode}']
    + [f'--config.{key}' for key in keys]
  )


def evaluations(folder):
  lines = (folder / 'metrics.jsonl').read_text().splitlines()
  entries = [json.loads(line) for line in lines]
  return [entry for entry in entries if entry['split'] == 'eval']


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A KTO run on unpaired data, an InfoNCA run on lists; four steps each."""
  folder = tmp_path_factory.mktemp('runs')
  steps = ('train.num_steps=4', 'train.save_every=2')
  assert run(folder, 'kto', 'unpaired', *steps) == 0
  assert run(folder, 'infonca', 'ranked', 'data.eval_pairs=18') == 0
  return folder


def test_unpaired_data_is_measured_by_its_labels(folder):
  first, last = evaluations(folder / 'kto')
  # Half of either weight while the policy equals the reference.
  assert first['loss'] == 0.5 and first['rewards/chosen'] == 0
  assert last['loss'] < 0.5 and last['rewards/margins'] > 0
  with np.load(folder / 'kto' / 'per_example' / 'eval_4.npz') as arrays:
    assert len(arrays['uid']) == len(set(arrays['uid'])) == 16
    good = arrays['desirable'] == 1
    ratio = arrays['policy'] - arrays['reference']
    assert (arrays['mismatched_log_ratio'] != 0).all()
  beta = 0.1
  np.testing.assert_allclose(
    [beta * ratio[good].mean(), beta * ratio[~good].mean(), -ratio.mean()],
    [last['rewards/chosen'], last['rewards/rejected'], last['kl']],
    rtol=1e-4,
  )


def test_lists_are_measured_by_the_comparisons_of_their_scores(folder):
  first, last = evaluations(folder / 'infonca')
  assert last['loss'] < first['loss']
  with np.load(folder / 'infonca' / 'per_example' / 'eval_2.npz') as arrays:
    # 3 comparisons of 3 answers, 6 of 4, clustered by their prompt.
    assert len(arrays['uid']) == 18
    assert set(np.unique(arrays['uid'], return_counts=True)[1]) <= {3, 6}
    assert (arrays['score_chosen'] > arrays['score_rejected']).all()


def test_evaluate_and_tables_work_on_them(folder, capsys):
  assert (
    run(folder, 'kto', 'unpaired', 'train.num_steps=4', mode='evaluate') == 0
  )
  printed = capsys.readouterr().out
  assert 'mismatched' not in printed.splitlines()[-1]
  metrics = json.loads(printed.splitlines()[-1].split(': ', 1)[1])
  last = evaluations(folder / 'kto')[-1]
  for name in ('loss', 'entropy', 'rewards/accuracies'):
    np.testing.assert_allclose(metrics[name], last[name], rtol=1e-5)
  runs = [str(folder / name) for name in ('kto', 'infonca')]
  assert results_main.main([*runs, f'--out={folder / "paper"}']) == 0
  table = (folder / 'paper' / 'results.md').read_text()
  assert '| KTO ' in table and '| InfoNCA ' in table
  # Labelled data have intervals over prompts: accuracy, margin, KL; and the
  # loss, which the table leaves out because two losses do not compare.
  row = next(line for line in table.splitlines() if line.startswith('| KTO '))
  assert row.count(' ± ') >= 2 and row.count(' [') == 1
  document = json.loads((folder / 'paper' / 'results.json').read_text())
  after = [c for c in document['rows'][0]['cells'] if c['when'] == 'after']
  over = {cell['label']: cell['over'] for cell in after}
  names = ('loss', 'accuracy', 'margin', 'KL')
  assert [over[name] for name in names] == ['prompts'] * 4


def test_a_run_goes_on_in_the_same_bits(folder):
  """Continues from step 2; later batches get the same mismatched answers."""

  items = ('params', 'opt_state', 'loss_state', 'rng', 'data')

  def state():
    with checkpoints.Checkpoints(folder / 'kto' / 'checkpoints') as saved:
      restored = saved.restore_latest(dict.fromkeys(items))
    return restored.step, tree.fingerprint(restored.items)

  before, lines = state(), evaluations(folder / 'kto')
  for path in (folder / 'kto' / 'checkpoints').glob('*4'):
    path.rename(folder / 'away')
  (folder / 'kto' / 'DONE').unlink()
  steps = ('train.num_steps=4', 'train.save_every=2')
  assert run(folder, 'kto', 'unpaired', *steps) == 0
  assert state() == before and before[0] == 4
  assert evaluations(folder / 'kto')[-1]['loss'] == lines[-1]['loss']


@pytest.mark.parametrize(
  'loss,kind,changes,words',
  [
    ('sigmoid', 'unpaired', (), 'needs comparisons, which config.data.train'),
    ('odpo', 'pairs', (), 'needs scores, which config.data.train has not'),
    ('margin', 'pairs', (), 'needs margin, which config.data.train has not'),
    ('infonca', 'unpaired', (), 'needs lists, which config.data.train'),
    ('kto', 'pairs', ('train.batch_size=1',), 'config.train.batch_size: 1'),
    ('kto', 'one prompt', (), 'all 60 records have the same prompt'),
  ],
)
def test_data_without_what_a_loss_reads_is_refused(
  tmp_path, capsys, loss, kind, changes, words
):
  assert run(tmp_path, loss, kind, *changes) == 2
  error = capsys.readouterr().err
  assert error.count('\n') == 1 and words in error and '; fix: ' in error
  assert not (tmp_path / loss).exists()
