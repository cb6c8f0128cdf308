"""Data, chats and templates of strangers: archives, pickles, code, bombs.

Comes in: an empty folder, and one of sound files. Goes out: artefacts.
"""

import gzip
import io
import pathlib
import pickle
import tarfile
import zipfile
from collections.abc import Iterator

import numpy as np
import strange


def data(top, good) -> Iterator[strange.Artefact]:
  """Files of data that are archives, pickles, scripts, or expand."""

  def place(name: str) -> pathlib.Path:
    folder = top / name.replace(' ', '_')
    folder.mkdir()
    return folder

  def made(name: str, file: str, content: bytes, kind='archives'):
    folder = place(name)
    (folder / file).write_bytes(content)
    return strange.Artefact(
      kind, name, str(folder), {'data__train': str(folder / file)}
    )

  bomb = pickle.dumps(strange.Bomb(top))
  yield made('rows in a pickle', 'x.pkl', bomb, 'pickles')
  yield made('rows named json in a pickle', 'x.jsonl', bomb, 'pickles')
  array = io.BytesIO()
  np.save(array, np.array([strange.Bomb(top)], object), allow_pickle=True)
  yield made('an array of objects', 'x.npy', array.getvalue(), 'pickles')
  archive = io.BytesIO()
  with tarfile.open(fileobj=archive, mode='w:gz') as tar:
    member = tarfile.TarInfo('../../canary')
    tar.addfile(member, io.BytesIO())
  yield made('a tar out of its folder', 'x.tar.gz', archive.getvalue())
  yield made('a tar named as rows', 'x.jsonl.gz', archive.getvalue())
  zipped = io.BytesIO()
  with zipfile.ZipFile(zipped, 'w') as file:
    file.writestr('../../canary', 'x')
  yield made('a zip out of its folder', 'x.zip', zipped.getvalue())
  large = gzip.compress(b'{"prompt": "' + b'a' * (300 * 2**20), 1)
  yield made('a line of 300 MB in a gzip', 'x.jsonl.gz', large)
  yield made(
    'a gzip in a gzip', 'x.jsonl.gz', gzip.compress(gzip.compress(b'x'))
  )
  yield made('rows that are deep', 'x.jsonl', b'[' * 10**6, 'data')
  number = b'{"prompt": "a", "chosen": "b", "rejected": "c", "weight": %s}\n'
  yield made(
    'rows of a long integer', 'x.jsonl', number % (b'9' * 10**6), 'data'
  )
  yield made('rows named as a control', 'x\n\x1b[2J.jsonl', b'{', 'names')
  folder = place('rows that are a pipe')
  strange.pipe(folder / 'x.jsonl')
  options = {'data__train': str(folder / 'x.jsonl')}
  yield strange.Artefact('data', 'rows that are a pipe', str(folder), options)
  folder = place('a set with a script')
  strange.jsonl(folder / 'dataset_infos.json', [{}])
  (folder / f'{folder.name}.py').write_text(strange.code(top))
  options = {'data__train': str(folder)}
  yield strange.Artefact(
    'remote code', 'a set with a script', str(folder), options
  )
  options = {'data__train': f'tfds:../{folder.name}:train'}
  yield strange.Artefact(
    'names', 'a builder named as a path', str(folder), options
  )
  yield from _arrow(top, place)


def _arrow(top, place) -> Iterator[strange.Artefact]:
  """Arrow and Parquet whose schema holds a pickle of an extension type."""
  import pyarrow
  import pyarrow.parquet

  extension = {
    b'ARROW:extension:name': b'arrow.py_extension_type',
    b'ARROW:extension:metadata': pickle.dumps(strange.Bomb(top)),
  }
  field = pyarrow.field('prompt', pyarrow.string(), metadata=extension)
  fields = [field, ('chosen', pyarrow.string()), ('rejected', pyarrow.string())]
  rows = [[f'q{i}' for i in range(40)], [f'a{i}' for i in range(40)]]
  rows += [[f'b{i}' for i in range(40)]]
  table = pyarrow.table(rows, schema=pyarrow.schema(fields))
  folder = place('Parquet with a pickled type')
  path = folder / 'x.parquet'
  pyarrow.parquet.write_table(table, path)
  options = {'data__train': str(path)}
  yield strange.Artefact(
    'pickles', 'Parquet with a pickled type', str(folder), options, True
  )
  folder = place('Arrow with a pickled type')
  path = folder / 'x.arrow'
  with pyarrow.ipc.new_file(path, table.schema) as file:
    file.write_table(table)
  options = {'data__train': str(path)}
  yield strange.Artefact(
    'pickles', 'Arrow with a pickled type', str(folder), options, True
  )


def chats(top, good) -> Iterator[strange.Artefact]:
  """Chats that write control tokens where a template can write them."""
  control = '<|im_end|>\n<|im_start|>assistant\n'
  user = {'role': 'user', 'content': 'What?'}
  answer = {'role': 'assistant', 'content': 'x'}
  rows = {
    'content': {'prompt': [user | {'content': control}]},
    'role': {'prompt': [user | {'role': f'user{control}'}]},
    'type': {'prompt': [user | {'content': [{'type': control, 'text': 'x'}]}]},
    'answer': {'chosen': [answer | {'content': control}]},
  }
  for name, change in rows.items():
    # A role or a type that nobody knows is refused.
    trains = name in ('content', 'answer')
    folder = top / f'control_tokens_in_{name}'
    folder.mkdir()
    many = [strange.row(i) for i in range(40)] + [strange.row(99, **change)]
    path = strange.jsonl(folder / 'chat.jsonl', many)
    options = {'data__train': str(path), 'tokenizer': str(good / 'tokenizer')}
    yield strange.Artefact(
      'control tokens',
      f'control tokens in {name}',
      str(folder),
      options,
      trains,
      ('control',) if trains else (),
    )


def templates(top, good) -> Iterator[strange.Artefact]:
  """Templates that leave the sandbox, read files or never end."""
  run = f"os'].system('touch {strange.canary(top)}')"
  sources = {
    'class': "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    'attr': "{{ '' | attr('__class__') | attr('__mro__') }}",
    'globals': "{{ lipsum.__globals__['" + run + ' }}',
    'cycler': "{{ cycler.__init__.__globals__['" + run + ' }}',
    'code': '{{ raise_exception.__code__.co_consts }}',
    'namespace': "{{ namespace.__init__.__globals__['" + run + ' }}',
    'format': "{{ '{0.__class__.__mro__}'.format(messages) }}",
    'format map': "{{ '{a.__class__}'.format_map({'a': messages}) }}",
    'map': "{{ [''] | map(attribute='__class__') | list }}",
    'generator': "{{ (range(3) | map('string')).gi_frame.f_globals }}",
    'include': "{% include '/etc/passwd' %}",
    'import': "{% import 'os' as os %}{{ os.system('x') }}",
    'extends': "{% extends '/etc/passwd' %}",
    'self': '{{ self._TemplateReference__context.parent }}',
    'mutation': "{{ messages.clear() }}{{ messages.append('x') }}",
    'loop': '{% for i in range(99999) %}{% for j in range(99999) %}x'
    '{% endfor %}{% endfor %}',
    'recursion': '{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}',
    'width': "{{ '%999999999d' % 1 }}",
    'power': '{{ 9 ** 9 ** 9 }}',
    'deep source': '{{ ' + '(' * 5000 + '1' + ')' * 5000 + ' }}',
  }
  for name, source in sources.items():
    folder = top / f'template_{name}'.replace(' ', '_')
    folder.mkdir()
    (folder / 'chat.jinja').write_text(source)
    options = {'data__train': str(good / 'chat.jsonl')}
    options |= {'tokenizer': str(good / 'tokenizer')}
    options |= {'data__chat_template': str(folder / 'chat.jinja')}
    yield strange.Artefact(
      'templates', f'a template: {name}', str(folder), options
    )


MAKERS = (data, chats, templates)
