"""recompute: any loss from the scores that an evaluation saved."""

import csv
import json

import harness
import jax
import numpy as np
import pytest

from dpo_jax import config as config_lib
from dpo_jax import losses
from dpo_jax.results import __main__ as command
from dpo_jax.results import recompute
from dpo_jax.run import held_out
from dpo_jax.storage import example_file
from dpo_jax.types import InputError

COLUMNS = (
  'comparisons',
  'labels',
  'lists',
  'margin',
  'reference_scores',
  'scores',
  'undesirable answers',
)
OWN = {'terms': {'sigmoid': 1.0, 'nll': 0.25}, 'beta': 0.3}


def scores():
  """(policy, reference, batch) whose comparisons all differ."""
  steps = np.arange(harness.NUM)
  policy, reference = harness.scores_of(
    0.4 + steps, -0.3 - 0.1 * steps, policy=(-7.0 - steps, -11.0)
  )
  return policy, reference, harness.batch_of(weight=(1.0, 0.5, 2.0, 1.0))


def make(folder, *, without=(), columns=COLUMNS, state=None, name='eval_2'):
  """A run directory whose evaluation saved these scores."""
  policy, reference, batch = jax.device_get(scores())
  policy = policy._replace(**{n: None for n in without if n in policy._fields})
  if 'reference' in without:
    reference = None
  if 'mismatched' in without:
    batch = batch._replace(mismatched=None)
  whole = held_out.to_arrays(held_out.HeldOut(policy, reference, batch), state)
  whole['columns'] = np.array(columns, 'U')
  config = config_lib.base()
  with config.unlocked():
    config.loss.update(OWN)
  (folder / 'config.json').write_text(
    json.dumps(config_lib.resolve(config), default=list)
  )
  (folder / 'env.json').write_text('{}')
  example_file.write(
    folder / 'per_example' / f'{name}.npz',
    {'uid': np.array([b'a'] * 4)}
    | {f'{example_file.WHOLE}{k}': v for k, v in whole.items()},
  )
  return folder


def lines(folder, text):
  return recompute.recompute([str(folder)], recompute.parse(text))


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  return make(tmp_path_factory.mktemp('run'))


@pytest.mark.parametrize('name', losses.names())
def test_every_loss_is_computed_from_saved_scores(run, name):
  hyper = losses.default_hyper({name: 1.0})
  with jax.disable_jit():  # quicker than to compile every loss
    (line,) = lines(run, f'loss={name}')
    wanted, _ = losses.make_objective((name,))(*scores(), hyper)
  np.testing.assert_allclose(line.metrics['loss'], wanted, rtol=2e-6)
  assert (line.run.endswith(run.name), line.evaluation) == (True, 'eval_2')


@pytest.mark.parametrize(
  'text',
  [
    'wpo=True',
    'f_divergence=forward_kl',
    'ld_alpha=0.5',
    'beta_dpo=True',
    'dr_dpo=True',
  ],
)
def test_every_option_too(run, text):
  with jax.disable_jit():
    (line,) = lines(run, f'loss=sigmoid,{text}')
    (plain,) = lines(run, 'loss=sigmoid')
  assert line.metrics['loss'] != plain.metrics['loss']


def test_without_a_loss_the_runs_own_is_changed(run):
  first, second = lines(run, 'beta=0.3:.05')
  terms = OWN['terms']
  policy, reference, batch = scores()
  for line, beta in ((first, 0.3), (second, 0.05)):
    hyper = losses.default_hyper(terms, beta=beta)
    with jax.disable_jit():
      wanted, parts = losses.make_objective(tuple(terms))(
        policy, reference, batch, hyper
      )
    np.testing.assert_allclose(line.metrics['loss'], wanted, rtol=1e-6)
    for name, value in parts.items():
      got = line.metrics[f'terms/{name}']
      np.testing.assert_allclose(got, value, rtol=1e-6)


def test_every_combination_is_computed(run):
  got = lines(run, 'loss=ipo:sigmoid,beta=.05:.1:.5')
  assert [tuple(line.setting.values()) for line in got] == [
    (loss, beta) for loss in ('ipo', 'sigmoid') for beta in ('.05', '.1', '.5')
  ]
  assert len({line.metrics['loss'] for line in got}) == 6
  # A mix by name, and as a sum.
  mix, total = lines(run, 'loss=rpo:1*sigmoid+nll')
  assert mix.metrics == total.metrics
  heavier, _ = lines(run, 'loss=2*sigmoid:sigmoid')
  assert heavier.metrics['loss'] == 2 * got[4].metrics['loss']


def test_running_numbers_are_the_runs_or_said_to_be_none(tmp_path):
  shift = {
    'desirable': np.float32(1),
    'num_desirable': np.float32(4),
    'undesirable': np.float32(0),
    'num_undesirable': np.float32(4),
  }
  results = []
  for state in (None, {'bco': shift}):
    folder = tmp_path / str(state is None)
    folder.mkdir()
    results += lines(make(folder, state=state), 'loss=bco')
  (first, second) = results
  assert first.metrics['loss'] != second.metrics['loss']
  assert second.notes == ()
  assert first.notes == (
    'bco: no run trained with it, so its running numbers are those before a '
    'first update.',
  )


@pytest.mark.parametrize(
  'text,without,words',
  [
    ('loss=kto', ('mismatched',), "scored with another prompt's answer"),
    ('loss=tdpo1', ('kl',), "the reference's full distribution"),
    ('loss=sigmoid,wpo=True', ('log_sum_sq_probs',), 'squared probabilities'),
    ('loss=sigmoid,ld_alpha=.5', ('heads_2P',), 'sums over the first tokens'),
    ('loss=sigmoid', ('reference',), 'scores of the frozen reference'),
  ],
)
def test_what_was_not_computed_is_refused(tmp_path, text, without, words):
  folder = make(tmp_path, without=without)
  with pytest.raises(InputError, match=f'eval_2.npz: .* needs .*{words}'):
    lines(folder, text)


def test_an_evaluation_that_lacks_something_is_left_out(tmp_path):
  make(tmp_path, without=('mismatched',), name='eval_0')
  make(tmp_path, name='test')
  first, *others = lines(tmp_path, 'loss=sigmoid:kto')
  got = [(line.evaluation, line.setting['loss']) for line in (first, *others)]
  assert got == [('eval_0', 'sigmoid'), ('test', 'sigmoid'), ('test', 'kto')]
  (note,) = first.notes
  assert 'left out: ' in note and 'eval_0.npz: kto needs' in note
  assert note.endswith('fix: evaluate with --config.eval.score_for=kto')


def test_data_without_what_a_loss_reads_is_refused(tmp_path):
  folder = make(tmp_path, columns=('comparisons', 'lists'))
  with pytest.raises(InputError, match='odpo: needs scores, which .*eval_2'):
    lines(folder, 'loss=odpo')


@pytest.mark.parametrize(
  'text,words',
  [
    ('loss', "'loss' is not of the form key=value:value"),
    ('beta=.1:', "'beta=.1:' is not of the form"),
    ('betta=1', "no key 'betta'; fix: did you mean 'beta'"),
    ('beta=1,beta=2', "'beta' is given twice"),
    ('loss=ippo', "terms.ippo: there is no such loss; fix: did you mean 'ipo'"),
    ('loss=x*ipo', "'x' is not the weight of 'ipo'"),
    ('loss=ipo,gamma=1', 'gamma: 1.0 is used by no chosen loss'),
    ('loss=ipo,beta=0', 'beta: .* is not allowed'),
    ('loss=simpo,f_divergence=forward_kl', 'is not allowed with simpo'),
  ],
)
def test_a_setting_that_means_nothing_is_refused(run, text, words):
  with pytest.raises(InputError, match=words):
    lines(run, text)


def test_files_of_older_versions_are_named(tmp_path):
  folder = make(tmp_path)
  path = folder / 'per_example' / 'eval_2.npz'
  path.unlink()
  with pytest.raises(InputError, match='saved no scores yet'):
    lines(folder, 'beta=1')
  example_file.write(path, {'uid': np.array([b'a'])})
  with pytest.raises(InputError, match='values per example only'):
    lines(folder, 'beta=1')
  path.write_bytes(b'no')
  with pytest.raises(InputError, match='not a readable npz'):
    lines(folder, 'beta=1')


def test_the_command_prints_and_writes_a_table(run, tmp_path, capsys):
  words = ['--recompute', 'loss=ipo:sigmoid,beta=.1', f'--out={tmp_path}/o']
  assert command.main([str(run), *words]) == 0
  text = capsys.readouterr().out
  head, _, first, second = text.splitlines()
  names = 'run evaluation terms beta loss accuracy margin KL'
  assert head.replace('|', '').split() == names.split()
  assert ' ipo ' in first and ' sigmoid ' in second
  with open(tmp_path / 'o' / 'recompute.csv', newline='') as file:
    rows = list(csv.DictReader(file))
  got = lines(run, 'loss=ipo:sigmoid,beta=.1')
  for row, line in zip(rows, got, strict=True):
    assert float(row['loss']) == pytest.approx(line.metrics['loss'], rel=1e-8)
  assert command.main([str(run), '--recompute', 'betta=1']) == 2
  assert capsys.readouterr().err.count('\n') == 1
  words = ['--verify', str(run), '--recompute', 'beta=1']
  assert command.main(words) == 2


def test_evaluations_come_in_order(tmp_path):
  for name in ('eval_10', 'eval_9', 'eval_0', 'test'):
    make(tmp_path, name=name)
  got = [line.evaluation for line in lines(tmp_path, 'beta=.1')]
  assert got == ['eval_0', 'eval_9', 'eval_10', 'test']


def test_another_epsilon_than_that_of_the_sums_is_refused(run):
  with jax.disable_jit():
    (line,) = lines(run, 'loss=epsilon_dpo,beta=.5')
  assert line.metrics['loss'] > 0
  with pytest.raises(InputError, match='epsilon 0.3 needs sums .* with 0.01'):
    lines(run, 'loss=epsilon_dpo,epsilon=.3')
