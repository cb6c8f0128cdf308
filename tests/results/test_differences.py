"""Differences: values by name, lines by number."""

from dpo_jax.results import differences


def _named(old, new):
  return [
    (', '.join(name), has, gives)
    for name, has, gives in differences.of_values(old, new)
  ]


def test_values_are_named_from_the_outside():
  old = {'a': [{'label': 'x', 'y': [1, 2]}, 3], 'b': {}}
  new = {'a': [{'label': 'x', 'y': [1, 5]}, 3], 'b': {}}
  assert _named(old, old) == []
  assert _named(old, new) == [('a, 0 (x), y, 1', 2, 5)]


def test_values_that_are_gone_or_new_are_named():
  assert _named({'a': 1}, {'a': 1, 'b': [2]}) == [('b, 0', None, 2)]
  assert _named({'a': 1, 'b': []}, {'a': 1}) == [('b', 'empty', None)]


def test_true_is_no_number():
  assert _named({'a': 1}, {'a': 1.0}) == []
  assert _named({'a': 1}, {'a': True}) == [('a', 1, True)]


def test_lines_name_the_first_field_that_differs():
  old, new = 'a|1|2\nb|3|4', 'a|1|2\nb|3|5\nc|6|7'
  assert list(differences.of_lines(old, new, '|')) == [
    (2, 'b', '4', '5'),
    (3, '', '', 'c'),
  ]
