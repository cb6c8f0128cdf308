"""Rows, columns, order, names and baseline by choice; what is refused."""

import json

import numpy as np
import pytest

from dpo_jax.results import __main__ as command
from dpo_jax.results import cells, collect, options, sheet, tables
from dpo_jax.types import InputError


@pytest.fixture
def sweep(make_scored_run, tmp_path):
  """Two losses, three betas, two seeds; accuracy rises with beta."""
  for loss in ('sigmoid', 'ipo'):
    for beta in (0.05, 0.1, 0.5):
      for seed in range(2):
        gap = np.random.default_rng(seed).normal(1, 4, 64)
        make_scored_run(
          f'runs/{loss}{beta}{seed}',
          {'loss.terms': {loss: 1.0}, 'loss.beta': beta, 'seed': seed},
          margins=gap + 4 * beta + (loss == 'ipo') / 4,
        )
  return tmp_path / 'runs'


def _table(folder, *flags) -> cells.Table:
  chosen = options.parse(['x', '--out=x', *flags]).options
  return cells.make_table(collect.collect([folder], chosen.at), chosen)


def _labels(table) -> list[tuple]:
  return [row.label for row in table.rows]


def _heads(table) -> list[str]:
  return list(sheet.main(table).heads)


@pytest.mark.parametrize(
  'rows, want',
  [
    ('loss=ipo', [('0.05',), ('0.1',), ('0.5',)]),
    ('loss=IPO,beta=.1:0.50', [('0.1',), ('0.5',)]),
    ('beta=0.5', [('DPO',), ('IPO',)]),
    ('loss=sigmoid:ipo,beta=0.05', [('DPO',), ('IPO',)]),
  ],
)
def test_rows_keep_what_has_the_values(sweep, rows, want):
  assert _labels(_table(sweep, f'--rows={rows}')) == want


def test_rows_may_choose_a_seed(sweep):
  table = _table(sweep, '--rows=seed=1')
  assert all(row.group.seeds == (1,) for row in table.rows)


def test_columns_are_in_their_order(sweep):
  table = _table(sweep, '--columns=beta,Loss,KL,accuracy before,accuracy,n')
  assert table.labels.keys == ('loss.beta', 'loss.terms')
  assert _heads(table) == [
    *('beta', 'Loss', 'n', 'KL', 'accuracy before', 'accuracy after'),
  ]
  # `loss` is the label of the loss; its value has another name.
  table = _table(sweep, '--columns=loss,beta,loss after')
  assert _heads(table) == ['Loss', 'beta', 'loss']
  table = _table(sweep, '--metrics=KL,rewards/accuracies')
  assert _heads(table) == ['Loss', 'beta', 'KL', 'accuracy']


def test_a_sort_is_by_labels_and_by_values(sweep):
  table = _table(sweep, '--sort=-beta,loss')
  assert _labels(table)[:3] == [('DPO', '0.5'), ('IPO', '0.5'), ('DPO', '0.1')]
  table = _table(sweep, '--sort=-margin')
  values = [row.cells['margin', 'after'].value for row in table.rows]
  assert values == sorted(values, reverse=True)


def test_rows_without_a_value_come_last(make_run, tmp_path):
  make_run('a/0', {'loss.beta': 0.1}, lines=[], done=False)
  make_run('a/1', {'loss.beta': 0.2}, final=0.5)
  make_run('a/2', {'loss.beta': 0.3}, final=0.4)
  for flag, want in (('loss after', '321'), ('-loss after', '231')):
    table = _table(tmp_path / 'a', f'--sort={flag}')
    assert _labels(table) == [(f'0.{digit}',) for digit in want]


def test_names_are_those_that_are_given(sweep):
  flags = '--label=loss=Objective,sigmoid=x,DPO=ours,KL=Drift,beta=b'
  with pytest.raises(InputError, match="--label: nothing .* 'sigmoid'"):
    _table(sweep, flags)
  table = _table(sweep, flags.replace('sigmoid=x,', ''))
  assert _heads(table)[:2] == ['Objective', 'b'] and 'Drift' in _heads(table)
  assert _labels(table)[0] == ('ours', '0.05')
  assert tables.row_name(table, 0) == 'Objective=ours, b=0.05'


def test_the_baseline_is_what_the_others_are_compared_with(sweep):
  table = _table(sweep, '--baseline=loss=ipo,beta=0.1')
  base = _labels(table).index(('IPO', '0.1'))
  assert {each.baseline for each in table.differences} == {base}
  assert len(table.differences) == 2 * 5
  assert ', minus Loss=IPO, beta=0.1:' in tables.markdown(table, '/')
  assert _table(sweep, '--baseline=none').differences == ()


def test_a_baseline_of_one_key_is_matched_in_the_others(sweep):
  table = _table(sweep, '--baseline=loss=DPO')
  pairs = {
    (_labels(table)[each.row], _labels(table)[each.baseline])
    for each in table.differences
  }
  assert pairs == {
    (('IPO', beta), ('DPO', beta)) for beta in ('0.05', '0.1', '0.5')
  }
  text = tables.markdown(table, '/')
  assert '| minus     |' in text and '| DPO, 0.05 |' in text


@pytest.mark.parametrize(
  'flag, message',
  [
    ('--rows=loss=dpo', 'no run has loss=dpo; fix: loss is DPO or IPO'),
    ('--rows=betta=1', "did you mean 'beta'?"),
    ('--rows=beta=0.05,seed=7', 'no run has seed=7; fix: seed is 0 or 1'),
    ('--columns=betta', "did you mean 'beta'?"),
    ('--columns=acuracy', "did you mean 'accuracy'?"),
    ('--columns=acuracy before', "no run reports 'acuracy'"),
    ('--columns=loss', 'several rows are Loss=DPO; fix: name another column'),
    ('--columns=loss,beta,KL --metrics=KL', 'besides --metrics'),
    ('--sort=acuracy', "did you mean 'accuracy'?"),
    ('--baseline=loss=kto', 'no row has loss=kto; fix: loss is DPO or IPO'),
    ('--label=los=x', "did you mean 'loss'?"),
    ('--metrics=acuracy', "no run reports 'acuracy'"),
    ('--at=best', "was trained with train.keep_best=''"),
  ],
)
def test_what_no_run_has_is_one_line_and_nothing_is_written(
  sweep, tmp_path, capsys, flag, message
):
  out = tmp_path / 'out'
  words = flag.replace(' --', '\n--').split('\n')
  assert command.main([str(sweep), f'--out={out}', *words]) == 2
  err = capsys.readouterr().err
  assert message in err and err.count('\n') == 1 and not out.exists()


@pytest.mark.usefixtures('no_drawing')
def test_choices_are_verified(sweep, tmp_path, capsys):
  out = tmp_path / 'out'
  flags = ['--rows=beta=0.1:0.5', '--sort=-margin', '--baseline=loss=ipo']
  flags += ['--columns=loss,beta,margin', '--label=margin=Gap', '--transpose']
  assert command.main([str(sweep), f'--out={out}', *flags]) == 0
  assert '| Gap ' in capsys.readouterr().out
  assert command.main([f'--verify={out}']) == 0
  path = out / 'results.json'
  document = json.loads(path.read_text())
  document['rows'][1]['cells'][0]['value'] += 0.1
  path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + '\n')
  capsys.readouterr()
  assert command.main([f'--verify={out}']) == 1
  assert 'results.json' in capsys.readouterr().out


def test_constants_are_said_once_and_are_no_columns(make_run, tmp_path):
  for beta, entropy in ((0.1, 2.0), (0.2, 2.5)):
    start = {'loss': 0.69, 'rewards/accuracies': 0.0, 'kl': 0.0}
    lengths = {'lengths/chosen': 64.0, 'entropy': 3.0}
    end = {'loss': 0.4, 'rewards/accuracies': 0.5, 'kl': beta}
    lines = [
      {'step': 0, 'split': 'eval', **start, **lengths},
      {'step': 9, 'split': 'eval', **end, **lengths, 'entropy': entropy},
    ]
    make_run(f'a/{beta}', {'loss.beta': beta}, lines=lines)
  table = _table(tmp_path / 'a')
  assert _heads(table) == ['beta', 'accuracy', 'KL', 'entropy']
  text = tables.markdown(table, '/')
  assert 'same in all rows: chosen length 64, entropy before 3.' in text
  assert 'policy = reference: accuracy 0, all tie.' in text
  assert 'losses do not compare and are not shown' in text
  # Whoever names a metric sees it.
  table = _table(tmp_path / 'a', '--metrics=lengths/chosen,loss')
  assert _heads(table) == ['beta', 'chosen length', 'loss']


def test_the_table_says_which_step_it_is_of(make_run, tmp_path):
  for beta in (0.1, 0.2):
    lines = [
      {'step': step, 'split': 'eval', 'loss': abs(step - 100 * beta) + 1}
      for step in (0, 10, 20, 30)
    ]
    make_run(f'a/{beta}', {'loss.beta': beta}, lines=lines)
  last = _table(tmp_path / 'a')
  assert 'step' not in _heads(last)
  assert 'Values are of the last evaluation (step 30)' in tables.markdown(
    last, '/'
  )
  best = _table(tmp_path / 'a', '--at=best:-loss', '--metrics=loss')
  rows = sheet.main(best).rows
  assert _heads(best)[:2] == ['beta', 'step']
  assert [row[1] for row in rows] == ['10', '20']
  assert "each run's evaluation of the lowest loss" in tables.markdown(
    best, '/'
  )
