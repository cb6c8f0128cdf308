"""metrics_file.py: lines of metrics.jsonl, torn, broken and not finite."""

import json
import math

import pytest

from dpo_jax.storage import metrics_file
from dpo_jax.types import InputError

LINE = b'{"step": 1, "split": "train", "loss": 0.5}'
ENTRY = {'step': 1, 'split': 'train', 'loss': 0.5}


@pytest.mark.parametrize('end', [b'\n', b'', b'\r\n', b'\n\n \n'])
def test_whole_lines_are_entries(end):
  assert metrics_file.parse(LINE + b'\n' + LINE + end, 'm') == ([ENTRY] * 2, 0)


def test_no_lines():
  for data in (b'', b'\n', b' \n\n'):
    assert metrics_file.parse(data, 'm') == ([], 0)


@pytest.mark.parametrize('tail', [LINE[:n] for n in range(1, len(LINE))])
def test_a_last_line_that_was_cut_anywhere_is_counted(tail):
  assert metrics_file.parse(LINE + b'\n' + tail, 'm') == ([ENTRY], 1)


@pytest.mark.parametrize(
  ('line', 'problem'),
  [
    (b'{"step": 2', 'not JSON'),
    (b'\xff', 'not JSON'),
    (b'[' * 100_000, 'not JSON'),
    (b'[1]', 'a JSON list, not an object'),
    (b'{}', 'step is None'),
    (b'{"step": "2", "split": "train"}', "step is '2'"),
    (b'{"step": true, "split": "train"}', 'step is True'),
    (b'{"step": -1, "split": "train"}', 'step is -1'),
    (b'{"step": 2, "split": 3}', 'split is 3'),
    (b'{"step": 2, "split": "eval", "loss": "low"}', "loss is 'low'"),
  ],
)
def test_a_broken_line_is_named(line, problem):
  data = LINE + b'\n' + line + b'\n' + LINE
  with pytest.raises(InputError) as error:
    metrics_file.parse(data, 'm', numbers=['loss'])
  message = str(error.value)
  assert message.startswith(f'm:2: not a line of metrics: {problem}')
  assert '; fix: ' in message and '\n' not in message


def test_values_are_numbers_with_nan_and_infinity_back():
  # As writers.py writes them: null in the place, named in 'nonfinite'.
  entry = ENTRY | {'kl': None, 'g': None, 'text': 'x', 'on': True, 'n': 3}
  entry['nonfinite'] = 'kl=nan, g=-inf'
  values = metrics_file.values(entry)
  assert math.isnan(values.pop('kl'))
  assert values == {'loss': 0.5, 'n': 3.0, 'g': -math.inf}


def test_an_integer_that_no_float_holds_is_infinite():
  line = LINE.replace(b'0.5', b'1' + b'0' * 400)
  ((entry,), _) = metrics_file.parse(line, 'm')
  assert metrics_file.values(entry) == {'loss': math.inf}


def test_numbers_come_back_as_they_were_written():
  # A continued run writes kept lines again: 1.0 may not become 1.
  line = b'{"step": 1, "split": "train", "a": 1.0, "b": 1, "c": 1e-45}'
  ((entry,), _) = metrics_file.parse(line, 'm')
  assert [repr(entry[name]) for name in 'abc'] == ['1.0', '1', '1e-45']


def test_a_file_is_read_without_its_torn_line(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  path.write_bytes(LINE + b'\n{"st')
  assert metrics_file.read(path) == [ENTRY]
  with pytest.raises(InputError, match='none: No such file'):
    metrics_file.read(tmp_path / 'none')


def test_a_seal_is_of_the_lines_without_their_rates(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  entries = [
    {'step': step, 'split': 'train', 'loss': 0.5, 'tokens_per_second': rate}
    for step, rate in ((1, 3.0), (2, 4.0), (3, 5.0))
  ]
  path.write_text(''.join(json.dumps(entry) + '\n' for entry in entries))
  seal = metrics_file.Seal(entries[:2]).value()
  assert seal['lines'] == 2
  # Later lines may follow, and rates are of the clock.
  assert metrics_file.check(path, seal, 2)
  path.write_text(path.read_text().replace('4.0', '9.0'))
  assert metrics_file.check(path, seal, 3)
  path.write_text(path.read_text().replace('0.5', '0.6'))
  with pytest.raises(InputError, match='its first 2 lines are not those'):
    metrics_file.check(path, seal, 2)
  path.write_text('')
  assert not metrics_file.check(path, seal, 2)
  assert not metrics_file.check(tmp_path / 'none', seal, 2)
  assert metrics_file.check(path, metrics_file.Seal().value(), 0)
