"""catalogue: read from the source, it equals the registry."""

import subprocess
import sys
import textwrap

import pytest

from dpo_jax import losses
from dpo_jax.losses import catalogue, records
from dpo_jax.types import InputError

SOURCE = '''
def plain(*, beta: float = 1.0):
  """Not decorated."""


@register
def bare():
  pass


@optim.register(
  label='Two ' 'parts', needs=('a', 'b'), state={'mean': 0.0}, update=plain
)
def full(
  x,
  positional=2,
  *,
  beta: float = -0.5,
  way: Literal['one', 'two'] = 'two',
  only: typing.Literal['this'] = 'this',
  count: int | None = None,
  required: float,
):
  """First line.

  The rest.
  """


@other(label='')
def others():
  pass
'''


def source_file(folder, text):
  path = folder / 'module.py'
  path.write_text(textwrap.dedent(text))
  return path


def without_functions(entry):
  names = {'fn', 'update', 'select'} & set(entry._fields)
  return entry._replace(**dict.fromkeys(names))


def test_records_are_the_registry_s():
  assert tuple(catalogue.read()) == losses.names()
  assert tuple(catalogue.read_options()) == losses.option_names()
  for name, loss in catalogue.read().items():
    assert loss == without_functions(losses.get(name)), name
  for name, option in catalogue.read_options().items():
    assert option == without_functions(losses.get_option(name)), name


def test_keys_are_those_of_the_registry():
  entries = [losses.get(name) for name in losses.names()]
  entries += [losses.get_option(name) for name in losses.option_names()]
  hyper = {key for entry in entries for key in entry.hyper}
  assert losses.hyper_names() == tuple(sorted(hyper))
  static = {key for entry in entries for key in entry.static}
  assert tuple(catalogue.static_choices()) == tuple(sorted(static))
  assert set(catalogue.static_choices()['reduction']) == {'mean', 'sum'}
  for key in (*hyper, *static, *catalogue.switches()):
    users = {e.name for e in entries if key in (e.name, *e.hyper, *e.static)}
    assert set(catalogue.users(key)) == users, key
  assert catalogue.users('nobody_has_this') == ()


def test_switches_have_no_keyword_of_their_name():
  assert set(catalogue.switches()) == {'wpo', 'beta_dpo', 'tr_dpo', 'dr_dpo'}


def test_read_functions_of_a_file(tmp_path):
  path = source_file(tmp_path, SOURCE)
  bare, full = catalogue.read_functions(path, 'register')
  assert bare == ('bare', {}, (), '')
  assert full.name == 'full'
  assert full.doc == 'First line.\n\nThe rest.'
  # A function cannot be read; everything else is a literal.
  assert full.fields == {
    'label': 'Two parts',
    'needs': ('a', 'b'),
    'state': {'mean': 0.0},
  }
  assert full.keywords == (
    records.Keyword('beta', -0.5),
    records.Keyword('way', 'two', ('one', 'two')),
    records.Keyword('only', 'this', ('this',)),
    records.Keyword('count', None),
    records.Keyword('required', records.REQUIRED),
  )
  assert list(catalogue.read_functions(path, 'nobody')) == []


def test_a_computed_default_cannot_be_read(tmp_path):
  text = '@register\ndef f(*, beta: float = 2 * x):\n  pass\n'
  path = source_file(tmp_path, text)
  with pytest.raises(InputError, match=r'module.py:2: 2 \* x is computed; fix'):
    list(catalogue.read_functions(path, 'register'))


def test_rules_and_catalogue_import_no_jax():
  code = (
    'import sys; from dpo_jax.losses import catalogue, rules; '
    'assert catalogue.read() and catalogue.read_options() and rules; '
    "print('jax' in sys.modules)"
  )
  done = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=True
  )
  assert done.stdout == 'False\n'
