"""Tokenizer folders: chat templates, and files that are refused."""

import json

import pytest
import toy_tokenizers as toy

from dpo_jax.data.text import tokenizer
from dpo_jax.types import InputError


def test_chat_templates_of_a_folder(tmp_path):
  named = [{'name': 'tool_use', 'template': 'B'}]
  loaded = toy.load(
    tmp_path,
    toy.byte_level(),
    template=[*named, {'name': 'default', 'template': 'A'}],
  )
  assert loaded.chat_templates == {'default': 'A', 'tool_use': 'B'}
  alone = toy.load(tmp_path, toy.byte_level(), template=named)
  assert alone.chat_templates == {'tool_use': 'B'}
  for bad in (7, [{'name': 'default'}], {'default': ['A']}):
    with pytest.raises(InputError, match='not a string under a name; fix: '):
      toy.load(tmp_path, toy.byte_level(), template=bad)
  # As transformers: .jinja files replace those of tokenizer_config.json.
  (tmp_path / 'additional_chat_templates').mkdir()
  (tmp_path / 'additional_chat_templates' / 'rag.jinja').write_text('D')
  others = toy.load(tmp_path, toy.byte_level(), template='A')
  assert others.chat_templates == {'rag': 'D'}
  (tmp_path / 'chat_template.jinja').write_text('C')
  both = toy.load(tmp_path, toy.byte_level(), template=named)
  assert both.chat_templates == {'default': 'C', 'rag': 'D'}
  prints = {x.fingerprint for x in (loaded, alone, others, both)}
  assert len(prints) == 4


def bad_folder(name):
  def change(folder):
    toy.save(folder, toy.byte_level(), eos_token='</s>')
    file, content = {
      'not json': ('tokenizer.json', '{'),
      'no tokenizer': ('tokenizer.json', '{"model": {}}'),
      'array': ('tokenizer.json', '[]'),
      'lfs': ('tokenizer.json', 'version https://git-lfs.github.com/spec/v1'),
      'config': ('tokenizer_config.json', '{"eos_token": }'),
      'list': ('generation_config.json', '[1]'),
      'unknown': ('tokenizer_config.json', '{"eos_token": "<nope>"}'),
      'not utf-8': ('config.json', b'\xff\xfe{}'),
    }[name]
    content = content if isinstance(content, bytes) else content.encode()
    (folder / file).write_bytes(content)
    return file

  return change


@pytest.mark.parametrize(
  ('name', 'problem'),
  [
    ('not json', 'is not a tokenizer that `tokenizers`'),
    ('no tokenizer', 'is not a tokenizer that `tokenizers`'),
    ('array', 'is not a tokenizer that `tokenizers`'),
    ('lfs', 'a git-lfs pointer'),
    ('config', 'not JSON'),
    ('list', 'a JSON list, not an object'),
    ('not utf-8', 'cannot be read'),
  ],
)
def test_files_that_cannot_be_read_are_named(tmp_path, name, problem):
  file = bad_folder(name)(tmp_path)
  with pytest.raises(InputError, match=rf'{file}: {problem}.*; fix: ') as error:
    tokenizer.load(str(tmp_path))
  assert '\n' not in str(error.value)


def test_a_folder_whose_files_do_not_go_together_is_refused(tmp_path):
  bad_folder('unknown')(tmp_path)
  with pytest.raises(InputError, match="no token '<nope>'.* eos_token; fix: "):
    tokenizer.load(str(tmp_path))


def test_no_tokenizer_there(tmp_path):
  with pytest.raises(InputError, match="bytes: .*; fix: did you mean 'byte'"):
    tokenizer.load('bytes')
  with pytest.raises(InputError, match='no tokenizer is there; fix: '):
    tokenizer.load(str(tmp_path))
  (tmp_path / 'tokenizer_config.json').write_text('{}')
  with pytest.raises(InputError, match='no tokenizer.json; fix: write one'):
    tokenizer.load(str(tmp_path))


def put(folder, name, **more):
  path = folder / name
  known = json.loads(path.read_text()) if path.exists() else {}
  path.write_text(json.dumps(known | more))


def post(name, ids):
  item = {'SpecialToken': {'id': '<x>', 'type_id': 0}}
  text = {'Sequence': {'id': 'A', 'type_id': 0}}
  token = {'id': name, 'ids': ids, 'tokens': [name]}
  return {
    'type': 'TemplateProcessing',
    'single': [item, text],
    'pair': [text],
    'special_tokens': {name: token},
  }


# (file, a key and its value, words of the refusal)
SPOILT = [
  ('tokenizer_config.json', 'eos_token', 'x\ud83d', 'settings.eos_token has a'),
  ('special_tokens_map.json', 'pad_token', {'content': '\udc00'}, 'lone surr'),
  ('tokenizer_config.json', 'chat_template', '{{ 1 }}\ud83d', 'lone surrogate'),
  ('tokenizer_config.json', 'additional_special_tokens', 7, 'not a list of'),
  ('tokenizer_config.json', 'extra_special_tokens', 'x', 'not a list of tok'),
  ('tokenizer.json', 'post_processor', post('<y>', [1]), "not define '<x>'"),
  ('tokenizer.json', 'post_processor', post('<x>', [10**6]), 'puts id 1000000'),
  ('tokenizer.json', 'model', {'type': 'BPE', 'vocab': {'a': 10**9},
    'merges': []}, 'has the token id 1000000000'),
]  # fmt: skip


@pytest.mark.parametrize(('name', 'key', 'value', 'words'), SPOILT)
def test_spoilt_files_are_refused_by_name(tmp_path, name, key, value, words):
  toy.save(tmp_path, toy.byte_level(), eos_token='</s>')
  put(tmp_path, name, **{key: value})
  with pytest.raises(InputError) as caught:
    tokenizer.load(str(tmp_path))
  line = str(caught.value)
  assert line.startswith(f'{tmp_path}/{name}: ') and words in line, line
  assert '; fix: ' in line and '\n' not in line
