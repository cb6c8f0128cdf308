"""Models, tokenizers and adapters of strangers: pickles, code, false headers.

Comes in: an empty folder, and one of sound files to spoil. Goes out: artefacts.
"""

import json
import pathlib
import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import strange

_LONG = 10**400  # beyond what any header may hold


def _model(top, good, name: str) -> tuple[pathlib.Path, dict[str, Any]]:
  """A folder with a sound model, and the options that choose it."""
  folder = top / name.replace(' ', '_')
  shutil.copytree(good / 'model', folder)
  return folder, {'model__preset': '', 'model__init_from': str(folder)}


def weights(top, good) -> Iterator[strange.Artefact]:
  """Weights that are pickles, or whose header lies."""
  bomb, single = pickle.dumps(strange.Bomb(top)), 'model.safetensors'

  def made(
    name: str,
    act: Callable[[pathlib.Path], None],
    kind: str = 'headers',
    trains: bool | None = False,
  ):
    folder, options = _model(top, good, name)
    act(folder)
    return strange.Artefact(kind, name, str(folder), options, trains)

  def only_pickle(folder):
    (folder / single).unlink()
    (folder / 'pytorch_model.bin').write_bytes(bomb)

  def zipped(folder):
    with zipfile.ZipFile(folder / single, 'w') as archive:
      archive.writestr('archive/data.pkl', bomb)

  yield made('a pickle of weights', only_pickle, 'pickles')
  yield made(
    'weights that are a pickle',
    lambda f: (f / single).write_bytes(bomb),
    'pickles',
  )
  yield made('weights that are a zip with a pickle', zipped, 'pickles')

  def header(change: Callable[[dict], Any]) -> Callable[[pathlib.Path], None]:
    def act(folder):
      path = folder / single
      data = path.read_bytes()
      size = struct.unpack('<Q', data[:8])[0]
      spec = change(json.loads(data[8 : 8 + size]))
      text = (spec if isinstance(spec, str) else json.dumps(spec)).encode()
      path.write_bytes(struct.pack('<Q', len(text)) + text + data[8 + size :])

    return act

  def first(**values):
    def change(spec):
      name = min(spec.keys() - {'__metadata__'})
      return spec | {name: spec[name] | values}

    return header(change)

  def size(number):
    return lambda f: (f / single).write_bytes(struct.pack('<Q', number) + b'{}')

  yield made('a header of 2**63 bytes', size(2**63))
  yield made('a header of a terabyte', size(10**12))
  yield made('a header that is no JSON', header(lambda spec: 'x' * 99))
  yield made('a deep header', header(lambda spec: '[' * 200_000))
  yield made('offsets beyond the file', first(data_offsets=[0, 10**15]))
  yield made('offsets below 0', first(data_offsets=[-64, 0]))
  yield made('offsets that are text', first(data_offsets='../x'))
  yield made('a shape of 2**62 elements', first(shape=[2**31, 2**31]))
  yield made('a shape of a long integer', first(shape=[_LONG]))
  yield made('a shape below 0', first(shape=[-1, -64]))
  yield made('a dtype that is an object', first(dtype='O'))
  yield made('a tensor named as a path', header(_named_as_path))
  # Which of two equal names counts is not said anywhere.
  yield made('a header of one name twice', header(_twice), trains=None)
  yield made('tensors that overlap', header(_overlap))
  yield made('weights that are a pipe', lambda f: strange.pipe(f / single))
  yield made(
    'weights that are a device', lambda f: strange.link(f / single, '/dev/zero')
  )

  def index(target):
    def act(folder):
      names = json.loads(_header(folder / single))
      (folder / single).unlink()
      names.pop('__metadata__', None)
      text = json.dumps(
        {'metadata': {}, 'weight_map': dict.fromkeys(names, target)}
      )
      (folder / f'{single}.index.json').write_text(text)

    return act

  yield made(
    'an index out of its folder', index('../good/model/' + single), 'names'
  )
  yield made('an index of a system file', index('/etc/passwd'), 'names')
  yield made('an index with a line end', index('a\nb.safetensors'), 'names')


def _header(path: pathlib.Path) -> bytes:
  data = path.read_bytes()
  return data[8 : 8 + struct.unpack('<Q', data[:8])[0]]


def _named_as_path(spec: dict) -> dict:
  name = min(spec.keys() - {'__metadata__'})
  return {'../../../etc/x' if key == name else key: spec[key] for key in spec}


def _twice(spec: dict) -> str:
  name = min(spec.keys() - {'__metadata__'})
  return (
    json.dumps(spec)[:-1] + f', {json.dumps(name)}: {json.dumps(spec[name])}}}'
  )


def _overlap(spec: dict) -> dict:
  names = sorted(spec.keys() - {'__metadata__'})
  return spec | {name: spec[names[0]] for name in names[:2]}


def configs(top, good) -> Iterator[strange.Artefact]:
  """config.json that names code, or sizes of no machine."""

  def made(name: str, kind='configs', trains=False, text=None, **values):
    folder, options = _model(top, good, name)
    path = folder / 'config.json'
    if text is None:
      strange.change(path, **values)
    else:
      path.write_text(text)
    (folder / 'modeling_evil.py').write_text(strange.code(top))
    return strange.Artefact(kind, name, str(folder), options, trains)

  auto = {
    x: 'modeling_evil.Evil' for x in ('AutoModelForCausalLM', 'AutoConfig')
  }
  yield made('a model with code', 'remote code', True, auto_map=auto)
  yield made(
    'a model of unknown code', 'remote code', model_type='evil', auto_map=auto
  )
  yield made(
    'a model type that is a path', 'names', model_type='../../etc/passwd'
  )
  yield made('a billion layers', num_hidden_layers=10**9)
  yield made('a width of 10**12', hidden_size=10**12)
  yield made('a vocabulary of 2**62', vocab_size=2**62)
  yield made(
    'a config of a long integer', text='{"vocab_size": ' + '9' * 99_999 + '}'
  )
  yield made('a deep config', text='[' * 100_000 + ']' * 100_000)
  folder, options = _model(top, good, 'a config that is a pipe')
  strange.pipe(folder / 'config.json')
  yield strange.Artefact(
    'configs', 'a config that is a pipe', str(folder), options
  )


def tokenizers(top, good) -> Iterator[strange.Artefact]:
  """Tokenizer folders that name code, or never end."""

  def made(
    name: str,
    kind: str = 'tokenizers',
    trains: bool | None = False,
    config: dict | None = None,
    chat: str = '',
    rows: int = 40,
    **values: Any,
  ):
    folder = top / name.replace(' ', '_')
    shutil.copytree(good / 'tokenizer', folder)
    strange.change(folder / 'tokenizer_config.json', **(config or {}))
    strange.change(folder / 'tokenizer.json', **values)
    (folder / 'tokenization_evil.py').write_text(strange.code(top))
    chats = [strange.row(i, chat) for i in range(rows)]
    path = strange.jsonl(folder / 'chat.jsonl', chats)
    options = {'tokenizer': str(folder), 'data__train': str(path)}
    return strange.Artefact(kind, name, str(folder), options, trains)

  auto = {'AutoTokenizer': ['tokenization_evil.Evil', None]}
  config = {'auto_map': auto, 'tokenizer_class': 'Evil'}
  yield made('a tokenizer with code', 'remote code', True, config)
  split = {'type': 'Split', 'behavior': 'Isolated', 'invert': False}
  yield made(
    'a pattern that does not end',
    pre_tokenizer=split | {'pattern': {'Regex': '(x+x+)+y'}},
    chat='x' * 60,
  )
  yield made(
    'a pattern that takes the square of a text',
    pre_tokenizer=split | {'pattern': {'Regex': '[xw]+x[yz]'}},
    chat='x' * 100_000,
    rows=1,
  )
  yield made(
    'a pattern of a thousand millions',
    trains=True,
    pre_tokenizer=split | {'pattern': {'Regex': '((a{999}){999}){999}'}},
  )
  yield made('a normalizer of no type', normalizer={'type': 'Evil'})
  yield made('a version of a long integer', version=_LONG)
  deep: Any = {'type': 'Lowercase'}
  for _ in range(150):
    deep = {'type': 'Sequence', 'normalizers': [deep]}
  yield made('a deep normalizer', normalizer=deep)
  added = {'single_word': False, 'lstrip': False, 'rstrip': False}
  added |= {'normalized': False, 'special': True}
  yield made(
    'an added token of 2**31',
    trains=True,
    added_tokens=[{'id': 2**31, 'content': '<x>'} | added],
  )
  folder = top / 'a_tokenizer_that_is_a_pickle'
  folder.mkdir()
  (folder / 'tokenizer.json').write_bytes(pickle.dumps(strange.Bomb(top)))
  options = {'tokenizer': str(folder)}
  name = 'a tokenizer that is a pickle'
  yield strange.Artefact('pickles', name, str(folder), options)
  folder = top / 'a_tokenizer_that_is_a_pipe'
  shutil.copytree(good / 'tokenizer', folder)
  strange.pipe(folder / 'tokenizer.json')
  options = {'tokenizer': str(folder)}
  yield strange.Artefact(
    'tokenizers', 'a tokenizer that is a pipe', str(folder), options
  )


def adapters(top, good) -> Iterator[strange.Artefact]:
  """Adapters that are pickles, or whose patterns never end."""

  def made(name: str, kind='adapters', trains=False, is_pickle=False, **values):
    folder = top / name.replace(' ', '_')
    shutil.copytree(good / 'adapter', folder)
    strange.change(folder / 'adapter_config.json', **values)
    if is_pickle:
      (folder / 'adapter_model.safetensors').unlink()
      (folder / 'adapter_model.bin').write_bytes(
        pickle.dumps(strange.Bomb(top))
      )
    options = {'model__preset': '', 'model__init_from': str(good / 'model')}
    options |= {'adapter__init_from': str(folder), 'adapter__rank': 2}
    return strange.Artefact(kind, name, str(folder), options, trains)

  yield made('an adapter that is a pickle', 'pickles', is_pickle=True)
  yield made(
    'a rank pattern that does not end', rank_pattern={'(.+)+(.+)+x': 2}
  )
  yield made('targets that do not end', target_modules='(.*)*(.*)*(.*)*x')
  yield made('a rank of 10**9', r=10**9)
  yield made('an alpha of a long integer', lora_alpha=_LONG)
  yield made(
    'an adapter with code',
    'remote code',
    auto_mapping={'base_model_class': 'evil'},
    peft_type='EVIL',
  )


MAKERS = (weights, configs, tokenizers, adapters)
