"""Sources: renamed columns, columns that are named, what a loss needs."""

import json

import pyarrow
import pyarrow.parquet
import pytest

from dpo_jax import types
from dpo_jax.data.sources import source as sources

PAIR = {'prompt': 'p', 'chosen': 'c', 'rejected': 'r'}
SCORED = PAIR | {
  'score_chosen': 2,
  'score_rejected': 0,
  'reference_scores': [0, 1.5, 3],
}


def _write(path, rows):
  if path.suffix == '.parquet':
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
  else:
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return path


@pytest.mark.parametrize('name', ['a.jsonl', 'a.parquet'])
def test_renamed_columns_are_read_from_every_format(tmp_path, name):
  rows = [{'q': 'p', 'good': 'c', 'bad': 'r', 'system': 's', 'id': 1}]
  path = _write(tmp_path / name, rows)
  columns = 'prompt=q,chosen=good,rejected=bad,-system'
  source = sources.open_source(path, columns=columns)
  (record,) = source.records()
  assert record.prompt == 'p' and record.completions == ('c', 'r')
  # The same bytes under other columns are other data.
  plain = sources.open_source(_write(tmp_path / f'b{name}', [PAIR]))
  renamed = sources.open_source(tmp_path / f'b{name}', columns='-system')
  assert plain.fingerprint != renamed.fingerprint
  with pytest.raises(types.InputError, match="no column 'x' to rename"):
    sources.open_source(path, columns='margin=x')


@pytest.mark.parametrize('name', ['a.jsonl', 'a.parquet'])
def test_reference_scores_are_read_from_every_format(tmp_path, name):
  source = sources.open_source(_write(tmp_path / name, [SCORED]))
  (record,) = source.records()
  assert record.quantiles == (2 / 3, 1 / 3)
  # The score of one answer is read beside them, and provenance without them.
  single = {'prompt': 'p', 'completion': 'c', 'label': True, 'score': 2.0}
  lines = []
  for more in ({'reference_scores': [1.0, 2.0, 3.0, 4.0]}, {}):
    path = _write(tmp_path / f'{len(more)}{name}', [single | more])
    (record,) = sources.open_source(path, log=lines.append).records()
    assert record.quantiles == ((0.5,) if more else None)
    assert record.scores is None and record.labels == (True,)
  assert lines == [f"{path}: columns that are not read: 'score'"]


@pytest.mark.parametrize('name', ['a.jsonl', 'a.parquet'])
def test_columns_that_are_not_read_are_named_once(tmp_path, name):
  rows = [PAIR | {'id': i, 'tools': 'x', 'source': None} for i in range(3)]
  path = _write(tmp_path / name, rows)
  lines = []
  source = sources.open_source(path, log=lines.append)
  list(source.records())
  list(source.records())
  assert lines == [
    f"{path}: columns that are not read: 'id', 'tools' (chats only), 'source'"
  ]


def test_columns_of_later_rows_are_named_too(tmp_path):
  rows = [PAIR, PAIR | {'b': 1}, PAIR | {'b': 1, 'c': 2}, PAIR | {'c': 3}]
  path = _write(tmp_path / 'a.jsonl', rows)
  lines = []
  list(sources.open_source(path, log=lines.append).records())
  assert lines == [
    f"{path}: columns that are not read: 'b'",
    f"{path}:3: columns that are not read: 'c'",
  ]
  rows = [PAIR | {f'k{i}_{j}': 1 for j in range(9)} for i in range(3000)]
  lines = []
  path = _write(tmp_path / 'b.jsonl', rows)
  list(sources.open_source(path, log=lines.append).records())
  assert len(lines) == 3  # and no more


@pytest.mark.parametrize(
  'rows,need,line',
  [
    ([PAIR | {'margin': 1}, PAIR | {'margin': None}], 'margin', 2),
    ([PAIR | {'margin': None}] * 2, 'margin', 1),
    ([PAIR | {'margin': 1}, PAIR, PAIR], 'margin', 2),
    ([PAIR, PAIR | {'margin': 1}], 'margin', 1),
    ([PAIR | {'score_chosen': 1, 'score_rejected': 0}, PAIR], 'scores', 2),
    ([PAIR | {'margin': 1}, PAIR], 'scores', 0),
    ([PAIR, PAIR], 'margin', 0),
    ([SCORED, SCORED | {'reference_scores': None}], 'reference_scores', 2),
    ([PAIR, SCORED], 'reference_scores', 1),
    (
      [PAIR | {'margin': 1}, PAIR | {'score_chosen': 1, 'score_rejected': 0}],
      'margin',
      0,
    ),
  ],
)
def test_a_row_that_lacks_what_a_loss_reads(tmp_path, rows, need, line):
  path = _write(tmp_path / 'a.jsonl', rows)
  assert len(list(sources.open_source(path).records())) == len(rows)
  source = sources.open_source(path, needs=(need,))
  if not line:
    # The data as a whole is looked at when it is encoded: see run/datasets.py.
    assert len(list(source.records())) == len(rows)
    return
  with pytest.raises(types.InputError) as caught:
    list(source.records())
  assert str(caught.value).startswith(f"{path}:{line}: '{need}' is not given")
