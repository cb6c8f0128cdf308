"""datasets: chats through the real command; refusals and unused options.

A refusal is exit code 2, one line, and nothing on disk.
"""

import json
import pathlib

import pytest
import toy_tokenizers as toy

from dpo_jax import config as config_lib
from dpo_jax import main as main_lib
from dpo_jax.data.text import tokenizer
from dpo_jax.run import datasets, inputs

ROOT = pathlib.Path(__file__).resolve().parents[2]
QUICKSTART = f'{ROOT}/experiments/quickstart.py:stage=sft,runlocal'
NO_BLOCK = ('--config.data.train_on=generation',)
# (template, further columns of the row, flags, parts of the error line)
CASES = {
  'forbidden': ("{{ ''.__class__ }}", {}, (), ('what no chat', '__class__')),
  'changing': ('{{ messages.append(1) }}', {}, (), ('what no', 'append')),
  'syntax': ('a\n{{ x', {}, (), ('no chat template', 'line 2: ')),
  'filter': ('{{ 1 | nope }}', {}, (), ('line 1: ', "'nope'")),
  'variable': ('{{ x.y }}', {}, (), ("'x' is undefined", 'template_args')),
  'raised': ("{{ raise_exception('a\nb') }}", {}, (), ("'a\\nb'",)),
  'endless': ('{{ range(10**9) }}', {}, (), ('cannot render', 'big')),
  'no tools': (toy.CHATML, {'tools': {'a': 1}}, (), ("'tools' is ",)),
  'tools cut': (toy.CHATML, {'tools': '[{'}, (), ("'tools' is ",)),
  'no block': (toy.CHATML, {}, NO_BLOCK, ('config.data.train_on: ', 'no {%')),
  'no template': (None, {}, (), ('no chat template', 'data.chat_template')),
  'no default': (
    [{'name': 'tool_use', 'template': toy.CHATML}],
    {},
    (),
    ("no template 'default', just 'tool_use'", "a Jinja file, or 'tool_use'"),
  ),
  'no such name': (
    [{'name': 'rag', 'template': toy.CHATML}],
    {},
    ('--config.data.chat_template=default',),
    ("config.data.chat_template: 'default' is no file", "'rag'"),
  ),
  'no such file': (
    None,
    {},
    ('--config.data.chat_template=no.jinja',),
    ("config.data.chat_template: 'no.jinja' is not there",),
  ),
  'no such argument': (
    toy.CHATML,
    {},
    ('--config.data.template_args={"message": 1}',),
    ('config.data.template_args: ', "did you mean 'messages'"),
  ),
  'arguments no object': (
    toy.CHATML,
    {},
    ('--config.data.template_args=[1]',),
    ('config.data.template_args: ', '[1]'),
  ),
  'add_bos no flag': (
    toy.CHATML,
    {},
    ('--config.data.add_bos=maybe',),
    ('config.data.add_bos: ', "'maybe'"),
  ),
  'no BOS to add': (
    toy.CHATML,
    {},
    ('--config.data.add_bos=true',),
    ('config.data.add_bos: ', 'has no BOS'),
  ),
}


def prepare(folder, template, **more):
  """Flags for a tokenizer with this template and a file of chats."""
  toy.save(folder / 'tokenizer', toy.byte_level(), template, eos_token='</s>')
  turns = [
    {'role': 'user', 'content': 'Why?'},
    {'role': 'assistant', 'content': 'So.'},
  ]
  row = json.dumps({'messages': turns, **more})
  (folder / 'chats.jsonl').write_text(f'{row}\n')
  return [
    f'--config.tokenizer={folder}/tokenizer',
    f'--config.data.train={folder}/chats.jsonl',
  ]


@pytest.mark.parametrize('name', CASES)
def test_what_is_refused(tmp_path, capsys, name):
  template, more, flags, parts = CASES[name]
  flags = [*prepare(tmp_path, template, **more), *flags]
  before = sorted(tmp_path.rglob('*'))
  code = main_lib.main(
    [f'--config={QUICKSTART}', f'--workdir={tmp_path}/run', *flags]
  )
  error = capsys.readouterr().err
  assert code == 2, error
  assert error.count('\n') == 1 and '; fix: ' in error
  assert all(part in error for part in parts), error
  if not error.startswith('config.'):  # the error is about the row
    assert error.startswith(f'{tmp_path}/chats.jsonl:1: ') or 'line ' in error
  assert sorted(tmp_path.rglob('*')) == before


def test_a_template_of_the_tokenizer_by_its_name(tmp_path):
  source = (
    "{{ tools }}{% for m in messages %}{{ m.content ~ 'NAME' }}{% endfor %}"
  )
  named = [
    {'name': name, 'template': source.replace('NAME', name)}
    for name in ('default', 'rag', 'tool_use')
  ]
  question = [{'role': 'user', 'content': 'Why?'}]
  file = tmp_path / 'file.jinja'
  file.write_text(source)
  config = config_lib.load(QUICKSTART)
  config.sample.prompts = f'{tmp_path}/chats.jsonl'
  for tools in (None, [{}]):
    prepare(tmp_path, named, tools=tools, prompt=question)
    tokens = tokenizer.load(f'{tmp_path}/tokenizer')
    default = 'tool_use' if tools else 'default'
    for given, name in (('', default), ('rag', 'rag'), (str(file), 'NAME')):
      config.data.chat_template = given
      (ids,) = datasets.read_prompts(config, tokens)
      assert tokens.decode(ids) == f'{tools}Why?{name}'


UNUSED = 'train: not used: data.chat_template, data.train_on, as no record'


@pytest.mark.parametrize('is_used', [False, True])
def test_options_that_no_row_used_are_said(tmp_path, is_used):
  rows = ({'prompt': f'p{i}', 'completion': 'yes'} for i in range(300))
  data = tmp_path / 'text.jsonl'
  data.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  (tmp_path / 'a.jinja').write_text(toy.CHATML)
  config = config_lib.load(QUICKSTART)
  config.data.train = str(data)
  config.data.chat_template = f'{tmp_path}/a.jinja'
  config.data.train_on = 'all_assistant'
  config.data.use_chat_template = 'always' if is_used else 'auto'
  for _ in range(2):  # the second time from the token cache
    lines = []
    inputs.read(config, tmp_path, log=lines.append)
    unused = [line for line in lines if line.startswith(UNUSED)]
    assert len(unused) == (0 if is_used else 1), lines
