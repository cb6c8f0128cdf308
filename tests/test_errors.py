"""errors.py: one form of refusal, one line; the nearest option."""

import pytest

from dpo_jax import errors
from dpo_jax.types import InputError


def test_a_refusal_is_where_problem_fix():
  error = errors.refuse('config.loss.beta', '0 is not allowed', 'use 0.1')
  assert isinstance(error, InputError)
  assert str(error) == 'config.loss.beta: 0 is not allowed; fix: use 0.1'


@pytest.mark.parametrize(
  'bad', ['\n', '\r', '\x00', '\x1b[2J', '\u2028', '\ud800']
)
def test_a_refusal_is_one_printable_line_whatever_the_data(bad):
  for parts in ((f'a{bad}', 'b', 'c'), ('a', f'b{bad}', 'c'), ('a', 'b', bad)):
    text = str(errors.refuse(*parts))
    assert text.isprintable() and len(text.splitlines()) == 1
    assert repr(bad)[1:-1] in text


@pytest.mark.parametrize('limit', [10, 60])
def test_values_are_shown_on_one_short_line(limit):
  assert errors.show('a\nb') == repr('a\nb')
  for value in ('x' * 10**6, list(range(1000)), {'a': 'b' * 99}):
    shown = errors.show(value, limit)
    assert len(shown) == limit and shown.endswith('...')
    assert repr(value).startswith(shown[:-3])


@pytest.mark.parametrize(
  ('word', 'match'),
  [
    ('sigmiod', 'sigmoid'),
    ('SIGMOID', 'sigmoid'),
    ('learning', 'learning_rate'),  # a beginning, though unlike as a whole
    ('zzz', ''),
    ('', ''),
    (None, ''),
    (0.1, '0.5'),
  ],
)
def test_nearest_is_the_closest_option_or_none(word, match):
  options = ['sigmoid', 'ipo', 'learning_rate', 0.5]
  assert errors.nearest(word, options) == match
  hint = f'did you mean {match!r}? ' if match else ''
  assert errors.did_you_mean(word, options) == hint
  assert errors.nearest(word, []) == ''


@pytest.mark.parametrize('options', [['loss', 'Loss'], ['Loss', 'loss']])
def test_of_two_that_differ_in_case_alone_the_word_s_case_is_kept(options):
  # A set gives either order, another in each process.
  assert errors.nearest('los', options) == 'loss'
  assert errors.nearest('Los', options) == 'Loss'


def test_a_stricter_cutoff_finds_less():
  assert errors.nearest('sigmiod', ['sigmoid'], cutoff=0.8) == 'sigmoid'
  assert errors.nearest('sgmd', ['sigmoid'], cutoff=0.8) == ''


@pytest.mark.parametrize(
  ('value', 'kind'),
  [
    (None, 'null'),
    ([], 'an empty list'),
    ('', 'an empty str'),
    ({}, 'an empty dict'),
    (0, 'int 0'),
    ('word', "str 'word'"),
  ],
)
def test_a_wrong_type_says_what_the_value_is(value, kind):
  error = errors.wrong_type('prompt', value, 'a list', 'f.jsonl:3')
  assert str(error) == (
    f"f.jsonl:3: 'prompt' is {kind}, not a list; fix: make 'prompt' a list"
  )
