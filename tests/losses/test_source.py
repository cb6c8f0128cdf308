"""losses.source: decorated functions, read without importing their file."""

import textwrap

import pytest

from dpo_jax.losses import source


def write(tmp_path, text):
  path = tmp_path / 'file.py'
  path.write_text(textwrap.dedent(text))
  return path


def test_reads_names_words_defaults_choices_and_docs(tmp_path):
  path = write(
    tmp_path,
    '''
    import no_such_module

    @register(needs=('reference',), label='A')
    def a(x, *, beta: float = 0.1, how: Literal['sum', 'mean'] = 'mean'):
      """First line.

      More.
      """

    @registry.register
    def b(x, y=1):
      pass

    @other
    def c(*, d: float = 1.0):
      pass

    def register():
      pass
    ''',
  )
  a, b = source.read_functions(path, 'register')
  assert (a.name, a.doc) == ('a', 'First line.')
  assert set(a.words) == {'needs', 'label'}
  assert a.defaults == {'beta': 0.1, 'how': 'mean'}
  assert a.choices == {'how': ('mean', 'sum')}  # the default first
  assert (b.name, b.doc, b.words, b.defaults) == ('b', '', {}, {})
  assert source.read_functions(path, 'nothing') == []


def test_a_default_that_is_no_literal_is_an_error(tmp_path):
  path = write(tmp_path, '@r\ndef a(*, beta: float = BETA):\n  pass\n')
  with pytest.raises(ValueError, match='malformed node'):
    source.read_functions(path, 'r')
