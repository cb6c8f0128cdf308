"""The numbers of each kind of figure, against numbers computed by hand."""

import json

import numpy as np
import pytest

from dpo_jax.results import collect
from dpo_jax.results.figures import (
  beta,
  calibration,
  curves,
  differences,
  displacement,
  frontier,
  heat,
  length,
  looks,
  margins,
  style,
  swept,
)


def _lines(**end):
  start = {name: 0.0 for name in end} | {'loss': 0.7}
  return [
    {'step': 0, 'split': 'eval', **start},
    {'step': 10, 'split': 'eval', 'loss': 0.35, **end},
  ]


@pytest.fixture
def sweep(make_run, tmp_path):
  """DPO with betas .1 and .5, IPO with .1; three seeds of each."""
  for loss, value in (('sigmoid', 0.1), ('sigmoid', 0.5), ('ipo', 0.1)):
    for seed in range(3):
      end = {
        'rewards/accuracies': value + 0.1 * seed,
        'kl': -seed,
        'logps/chosen': -5.0 - seed,
        'logps/rejected': -9.0,
      }
      make_run(
        f'runs/{loss},{value},{seed}',
        {'loss.terms': {loss: 1.0}, 'loss.beta': value, 'seed': seed},
        lines=_lines(**end),
      )
  return tmp_path / 'runs'


def test_curves_are_means_over_seeds(sweep, make_report):
  data = curves.data(make_report(sweep))
  titles = [panel['title'] for panel in data['panels']]
  assert titles == ['loss, held-out', 'accuracy, held-out']
  assert [panel['y_label'] for panel in data['panels']] == ['', 'share won']
  series = {each['label']: each for each in data['panels'][1]['series']}
  assert list(series) == ['DPO, β = 0.1', 'DPO, β = 0.5', 'IPO, β = 0.1']
  # the tie at step 0 is no point; .5, .6, .7 -> .6
  assert series['DPO, β = 0.5']['x'] == [10]
  assert series['DPO, β = 0.5']['y'] == [0.6]
  half = 4.302653 * 0.1 / np.sqrt(3)
  assert series['DPO, β = 0.5']['high'][0] == pytest.approx(0.6 + half)
  assert series['DPO, β = 0.5']['runs'] == [
    f'runs/sigmoid,0.5,{seed}' for seed in range(3)
  ]
  json.dumps(data, allow_nan=False)


def test_losses_of_several_units_are_shares_of_their_start(
  make_run, make_report, tmp_path
):
  for loss, start in (('sigmoid', 0.7), ('ipo', 25.0)):
    lines = [
      {'step': step, 'split': 'eval', 'loss': value}
      for step, value in ((0, start), (10, start / 4))
    ]
    lines += [{'step': 3, 'split': 'train', 'loss': start / 2}]
    make_run(f'runs/{loss}', {'loss.terms': {loss: 1.0}}, lines=lines)
  held_out, training = curves.data(make_report(tmp_path / 'runs'))['panels']
  for each in held_out['series']:
    assert each['y'] == [1, 0.25]
  assert [each['y'] for each in training['series']] == [[0.5], [0.5]]
  assert held_out['relative'] and held_out['y_label'] == 'of its start'


def test_curves_of_an_unmeasured_run_and_of_sft(make_run, make_report):
  data = curves.data(make_report(make_run('none', lines=[], done=False)))
  assert len(data['panels']) == 1 and data['panels'][0]['series'] == []
  sft = make_run('sft', {'stage': 'sft'}, lines=_lines())
  (panel,) = curves.data(make_report(sft))['panels']
  assert panel['series'][0]['y'] == [0.7, 0.35]


def test_beta_has_the_cells_of_each_loss(sweep, make_report):
  report = make_report(sweep)
  data = beta.data(report)
  # IPO has one beta, so no line
  assert [entry['label'] for entry in data['legend']] == ['DPO']
  accuracy, kl = data['panels']
  assert accuracy['metric'] == 'rewards/accuracies' and kl['y_label'] == 'nats'
  (series,) = accuracy['series']
  assert series['x'] == [0.1, 0.5] and series['y'] == [0.2, 0.6]
  assert series['over'] == 'seeds' and len(series['runs']) == 6
  cell = report.table.rows[1].cells['accuracy', 'after']
  assert series['low'][1] == pytest.approx(cell.low)
  assert beta.data(make_report(sweep / 'ipo,0.1,0')) is None


def test_displacement_is_the_log_ratio(make_scored_run, make_report):
  run = make_scored_run('a', margins=[4.0, -8.0, 12.0])
  lines = [
    {'step': 0, 'split': 'eval', 'logps/chosen': -40, 'logps/rejected': -40},
    {'step': 10, 'split': 'eval', 'logps/chosen': -37, 'logps/rejected': -44},
  ]
  text = ''.join(json.dumps(line) + '\n' for line in lines)
  (run / 'metrics.jsonl').write_text(text)
  chosen, rejected = displacement.data(make_report(run))['panels']
  # the reference's scores are -40 in every comparison
  assert chosen['series'][0]['y'] == [0, 3]
  assert rejected['series'][0]['y'] == [0, -4]
  assert chosen['y_label'] == 'log-ratio (nats)'


def test_displacement_without_saved_scores_is_since_step_0(sweep, make_report):
  chosen, _ = displacement.data(make_report(sweep / 'ipo,0.1,1'))['panels']
  # step 0 logged 0
  assert chosen['series'][0]['y'] == [0, -6]


def test_margins_before_and_after(make_scored_run, make_report):
  gap = np.array([-1.0, 0.5, 2.0, 5.0])
  run = make_scored_run('a', margins=gap, beta=0.5)
  with np.load(run / 'per_example/eval_10.npz') as archive:
    arrays = dict(archive)
  start = arrays | {
    'policy_chosen': np.array([-40.0, -39, -41, -40]),
    'policy_rejected': np.full(4, -40.0),
    'reward_chosen': np.zeros(4),
    'reward_rejected': np.zeros(4),
  }
  np.savez(run / 'per_example/eval_0.npz', **start)
  logps, rewards = margins.data(make_report(run))['panels']
  before, after = logps['series']
  assert before['label'] == margins.BEFORE
  # shares: each comparison is one of four
  np.testing.assert_allclose(sum(after['y']), 1)
  counts, _ = np.histogram(np.clip(gap, *after['edges'][::24]), after['edges'])
  assert after['y'] == (counts / 4).tolist()
  assert np.dot(before['x'], before['y']) == pytest.approx(0.0, abs=0.2)
  # all rewards are 0 before: a spike, which is not drawn
  assert [each['label'] for each in rewards['series']] == ['a']
  assert rewards['series'][0]['x'][0] == pytest.approx(
    0.5 * np.percentile(gap, 1), abs=0.1
  )


def test_length_in_common_bins(make_scored_run, make_report):
  num = 48
  run = make_scored_run('a', margins=np.arange(num) - 10.0)
  path = run / 'per_example/eval_10.npz'
  with np.load(path) as archive:
    arrays = dict(archive)
  arrays['chosen_tokens'] = np.repeat([5, 20, 9, 30], num // 4)
  arrays['reward_chosen'] = np.repeat([1.0, 4, 2, 8], num // 4)
  np.savez(path, **arrays)
  chosen, rejected = length.data(make_report(run))['panels']
  (series,) = chosen['series']
  assert series['x'] == [5, 9, 20, 30] and series['y'] == [1, 2, 4, 8]
  assert series['low'] == series['high'] == series['y']  # no spread in a bin
  assert series['num'] == [12] * 4
  # rejected answers have one length: one bin, with the mean of all
  assert rejected['series'][0]['x'] == [9]
  assert rejected['series'][0]['y'] == [
    pytest.approx(np.mean(arrays['reward_rejected']))
  ]


def test_answers_of_one_length_are_not_drawn(make_scored_run, make_report):
  run = make_scored_run('a', margins=np.arange(48.0))
  assert length.data(make_report(run)) is None


def test_calibration_of_known_rewards(make_scored_run, make_report):
  num = 40
  run = make_scored_run('a', margins=np.ones(num))
  path = run / 'per_example/eval_10.npz'
  with np.load(path) as archive:
    arrays = dict(archive)
  # log-odds .2 in 20 comparisons, half of them the right way; 2 in the rest
  sign = np.array([1, -1] * 10 + [1] * 18 + [-1] * 2)
  arrays['reward_chosen'] = sign * np.repeat([0.2, 2.0], 20)
  arrays['reward_rejected'] = np.zeros(num)
  np.savez(path, **arrays)
  data = calibration.data(make_report(run))
  (series,) = data['panels'][0]['series']
  assert series['x'] == [
    pytest.approx(1 / (1 + np.exp(-0.2))),
    pytest.approx(1 / (1 + np.exp(-2.0))),
  ]
  assert series['y'] == [0.5, 0.9] and series['num'] == [20, 20]
  # Wilson, 18 of 20: (.699, .972) (Newcombe, Statistics in Medicine 17 (1998),
  # has the formula); 10 of 20: (.299, .701)
  assert series['low'] == pytest.approx([0.299, 0.699], abs=5e-4)
  assert series['high'] == pytest.approx([0.701, 0.972], abs=5e-4)


def test_ties_have_no_calibration(make_scored_run, make_report):
  run = make_scored_run('a', margins=np.zeros(32))
  assert calibration.data(make_report(run)) is None


def test_the_heat_map_of_two_keys(sweep, make_report):
  data = heat.data(make_report(sweep))
  assert (data['y_label'], data['x_label']) == ('loss', 'β')
  assert data['rows'] == ['DPO', 'IPO'] and data['columns_of'] == ['0.1', '0.5']
  assert data['grids'][0]['values'] == [[0.2, 0.6], [0.2, None]]
  assert data['runs'][1] == [[f'runs/ipo,0.1,{i}' for i in range(3)], []]
  assert heat.as_texts([[0.2, None], [0.125, 0.6]]) == [
    ['0.200', ''],
    ['0.125', '0.600'],
  ]
  assert heat.as_texts([[24.0, 0.08]]) == [['24.0', '0.1']]
  assert heat.data(make_report(sweep / 'ipo,0.1,0')) is None


@pytest.fixture
def sampled(make_run, tmp_path):
  """Makes runs that --mode=frontier sampled at steps 25 and 50."""

  def make(value, seed, points, se=0.1):
    path = make_run(f'runs/{value},{seed}', {'loss.beta': value, 'seed': seed})
    (path / 'frontier').mkdir(exist_ok=True)
    for step, (kl, reward) in zip((25, 50), points):
      metrics = {
        'kl': {'mean': kl, 'se': se},
        'reward': {'mean': reward, 'se': se},
      }
      facts = {'step': step, 'reward': 'lexicon', 'metrics': metrics}
      text = json.dumps(facts)
      (path / 'frontier' / f'step_{step}.json').write_text(text)
    return path

  return make


def test_the_frontier_is_per_loss_and_seed(sampled, make_report, tmp_path):
  for seed, shift in enumerate((0.0, 0.1, 0.5)):
    sampled(0.1, seed, [(2.0, 1.0 + shift), (4.0, 3.0 + shift)])
    # dominated by the line of beta .1, but for its first point
    sampled(0.5, seed, [(1.0, 0.5 + shift), (3.0, 0.9 + shift)])
  data = frontier.data(make_report(tmp_path / 'runs'))
  (panel,) = data['panels']
  assert panel['y_label'] == 'reward (lexicon)' and 'nats' in panel['x_label']
  one, two, line = panel['series']
  assert one['x'] == [2, 4] and one['steps'] == [25, 50]
  assert one['y'] == [pytest.approx(1.2), pytest.approx(3.2)]
  half = 4.302653 * np.std([0, 0.1, 0.5], ddof=1) / np.sqrt(3)
  assert one['high'][0] == pytest.approx(1.2 + half)
  assert two['y'] == [pytest.approx(0.7), pytest.approx(1.1)]
  # the points that nothing beats: (1, .5), (2, 1), (4, 3) plus the shifts
  assert line['kind'] == 'frontier' and line['num_seeds'] == 3
  assert (line['x'][0], line['x'][-1]) == (1, 4)
  expected = np.interp(line['x'], [1, 2, 4], [0.7, 1.2, 3.2])
  np.testing.assert_allclose(line['y'], expected)
  np.testing.assert_allclose(line['high'], expected + half, rtol=1e-6)
  assert len(line['runs']) == 6


def test_one_seed_has_the_error_of_its_samples(sampled, make_report):
  data = frontier.data(make_report(sampled(0.1, 0, [(1.0, 2.0)], se=0.5)))
  (points,) = data['panels'][0]['series']
  assert points['over'] == 'samples'
  assert points['low'] == [pytest.approx(2 - 0.98)]


def test_undominated_points():
  points = [(3, 1.0), (1, 0.5), (2, 2.0), (2, 0.1), (4, 2.0), (5, 2.5)]
  line = frontier.undominated(points)
  assert line.x.tolist() == [1, 2, 5] and line.y.tolist() == [0.5, 2, 2.5]


def test_runs_without_samples_have_no_frontier(sweep, make_report):
  assert frontier.data(make_report(sweep)) is None


def test_the_start_is_read_and_counted(make_scored_run):
  run = make_scored_run('a', margins=[1.0, 2.0])
  data = (run / 'per_example/eval_10.npz').read_bytes()
  (run / 'per_example/eval_0.npz').write_bytes(data)
  read = collect.read_run(run)
  assert read.first.step == 0 and read.examples.step == 10
  assert 'per_example/eval_0.npz' in read.digests


def test_a_metric_against_a_swept_number(make_run, make_report, tmp_path):
  for loss, smoothing in (('sigmoid', 0.2), ('sigmoid', 0.0), ('ipo', None)):
    for share in (0.2, 0.4, 0.0):
      for seed in range(3):
        accuracy = 0.6 - share + 0.1 * seed
        make_run(
          f'runs/{loss},{smoothing},{share},{seed}',
          {
            'loss.terms': {loss: 1.0},
            'loss.label_smoothing': smoothing,
            'data.flip_share': share,
            'seed': seed,
          },
          lines=_lines(**{'rewards/accuracies': accuracy}),
        )
  data = swept.data(make_report(tmp_path / 'runs'))
  (panel,) = data['panels']
  assert (panel['title'], panel['x_label']) == ('accuracy', 'flip_share')
  assert panel['x_scale'] == ''  # 0 has no logarithm
  labels = [each['label'] for each in panel['series']]
  # What a loss does not have is not in its label.
  assert sorted(labels) == [
    'DPO, label_smoothing = 0',
    'DPO, label_smoothing = 0.2',
    'IPO',
  ]
  half = 4.302653 * 0.1 / np.sqrt(3)
  for each in panel['series']:
    assert each['x'] == [0, 0.2, 0.4] and each['beta'] is None
    np.testing.assert_allclose(each['y'], [0.7, 0.5, 0.3])
    np.testing.assert_allclose(each['high'], np.add(each['y'], half), rtol=1e-6)
    assert len(each['runs']) == 9
  assert 'data.flip_share' in data['caption']


def test_numbers_over_decades_have_a_log_axis(make_run, make_report, tmp_path):
  for rate in (1e-5, 1e-4, 1e-3):
    make_run(f'runs/{rate}', {'optim.learning_rate': rate})
  data = swept.data(make_report(tmp_path / 'runs'))
  assert {panel['x_scale'] for panel in data['panels']} == {'log'}


def test_beta_and_texts_are_no_swept_number(sweep, make_run, make_report):
  assert swept.data(make_report(sweep)) is None
  make_run('texts/a', {'optim.name': 'adamw'})
  make_run('texts/b', {'optim.name': 'lion'})
  assert swept.data(make_report(sweep.parent / 'texts')) is None


def test_differences_are_those_of_the_table(make_scored_run, make_report):
  rng = np.random.default_rng(0)
  for loss, shift in (('sigmoid', 0.0), ('ipo', 9.0), ('hinge', 0.2)):
    for seed in range(3):
      run = make_scored_run(
        f'runs/{loss},{seed}',
        {'loss.terms': {loss: 1.0}, 'seed': seed},
        margins=rng.normal(shift, 1.0, 64),
      )
  report = make_report(run.parent)
  data = differences.data(report)
  (panel,) = data['panels']
  (base,) = {each.baseline for each in report.table.differences}
  assert panel['title'] == 'accuracy, minus DPO' and base == 0
  by_label = {each['label']: each for each in panel['series']}
  means = [each['x'][0] for each in panel['series']]
  assert means == sorted(means, reverse=True)
  assert [each['y'] for each in panel['series']] == [[0], [1]]
  labels = [looks.loss_label(r.group.runs[0].config) for r in report.table.rows]
  for each in report.table.differences:
    if each.metric == 'accuracy':
      one = by_label[labels[each.row]]
      assert one['low'] == [pytest.approx(each.interval.low)]
      assert one['high'] == [pytest.approx(each.interval.high)]
      assert one['significant'] == (each.p_holm < 0.05)
      assert len(one['runs']) == 6
  # IPO wins all comparisons, DPO half of them; Hinge is as DPO.
  assert by_label['IPO']['significant'] and not by_label['Hinge']['significant']
  with style.settings():
    drawing = differences.draw(data, 3.3)
  (axis,) = drawing.axes
  assert [t.get_text() for t in axis.get_yticklabels()] == list(by_label)
  faces = [line.get_markerfacecolor() for line in axis.lines[1:]]
  assert faces == [style.COLOURS[0], 'white']
  assert differences.data(make_report(run)) is None
