"""export: the folder holds the newest policy, whole or not at all."""

import json

import jax
import numpy as np
import pytest
import small_models
import tokenizers
from commands import CONFIG, EXPERIMENT

from dpo_jax import config as config_lib
from dpo_jax import main as main_lib
from dpo_jax.data.text import templates
from dpo_jax.data.text import tokenizer as tokenizer_lib
from dpo_jax.run import session as sessions
from dpo_jax.storage import hf_checkpoint


def test_the_folder_holds_the_newest_policy_and_is_written_once(
  tmp_path, capsys
):
  run, folder = f'--workdir={tmp_path}/run', tmp_path / 'folder'
  assert main_lib.main([CONFIG, run]) == 0
  export = [CONFIG, run, '--mode=export', f'--export_to={folder}']
  assert main_lib.main(export) == 0
  assert f'{folder}: the policy of step 2' in capsys.readouterr().out
  config = config_lib.load(EXPERIMENT)
  with sessions.open_workdir(config, f'{tmp_path}/run') as session:
    policy = sessions.policy(session)
    model = session.job.inputs.model
  jax.tree.map(
    np.testing.assert_array_equal,
    jax.device_get(policy.params),
    hf_checkpoint.load_params(folder, model),
  )
  before = {p: p.read_bytes() for p in folder.iterdir()}
  assert main_lib.main(export) == 2
  assert 'is there already; fix: ' in capsys.readouterr().err
  assert before == {p: p.read_bytes() for p in folder.iterdir()}


TEMPLATE = (
  '{% for m in messages %}<u>{{ m.content }}</s>{% endfor %}'
  '{% if add_generation_prompt %}<a>{% endif %}'
)
TOOLS = '{{ tools | tojson }}' + TEMPLATE


def write_tokenizer(folder, **settings):
  """A tokenizer.json of letters, with <s> 1, </s> 2, <end> 3 and <u>, <a>."""
  special = ['<pad>', '<s>', '</s>', '<end>', '<u>', '<a>']
  letters = [chr(c) for c in range(32, 127)]
  vocab = {text: i for i, text in enumerate([*special, *letters])}
  made = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, []))
  made.pre_tokenizer = tokenizers.pre_tokenizers.Split('', 'isolated')
  made.add_special_tokens(special)
  folder.mkdir(exist_ok=True)
  made.save(str(folder / 'tokenizer.json'))
  settings = {'bos_token': '<s>', 'eos_token': '</s>'} | settings
  (folder / 'tokenizer_config.json').write_text(json.dumps(settings))
  return len(vocab)


@pytest.fixture
def model(tmp_path):
  """A model whose files name other stops than its tokenizer."""
  folder = tmp_path / 'model'
  small_models.write(folder, vocab_size=101)
  assert write_tokenizer(folder, chat_template=TEMPLATE) == 101
  config = json.loads((folder / 'config.json').read_text())
  (folder / 'config.json').write_text(json.dumps(config | {'eos_token_id': 3}))
  text = json.dumps({'eos_token_id': [3], 'top_p': 0.9, 'bos_token_id': 0})
  (folder / 'generation_config.json').write_text(text)
  return folder


def export(tmp_path, model, *flags):
  """Exports the initial policy; the folder and its two configs."""
  out = tmp_path / 'out'
  code = main_lib.main(
    [
      CONFIG,
      f'--workdir={tmp_path}/run',
      '--mode=export',
      f'--export_to={out}',
      '--config.model.preset=',
      f'--config.model.init_from={model}',
      '--config.tokenizer=',
      '--config.data.train=gone.jsonl',  # an export reads no data
      *(f'--config.{flag}' for flag in flags),
    ]
  )
  assert code == 0
  assert not (tmp_path / 'run').exists()
  names = ('config.json', 'generation_config.json')
  return out, *(json.loads((out / name).read_text()) for name in names)


def test_it_stops_where_training_and_sampling_stop(tmp_path, capsys, model):
  out, config, generation = export(tmp_path, model)
  # The tokenizer's EOS is what training taught; 3 stops our sampling too.
  assert config['eos_token_id'] == generation['eos_token_id'] == [2, 3]
  assert config['bos_token_id'] == generation['bos_token_id'] == 1
  assert generation['top_p'] == 0.9
  assert "stops at 2 '</s>', 3 '<end>'" in capsys.readouterr().out
  ours, theirs = (tokenizer_lib.load(str(f)) for f in (model, out))
  assert ours.stop_ids == theirs.stop_ids == {2, 3}
  assert ours.chat_templates == theirs.chat_templates == {'default': TEMPLATE}


@pytest.mark.parametrize(
  ('settings', 'flags', 'stops'),
  [
    ({'eos_token': '<end>'}, [], 3),
    ({'eos_token': None}, [], 3),
    ({}, ['sample.stop=<u>'], [2, 3, 4]),
  ],
)
def test_stops_of_other_kinds(tmp_path, model, settings, flags, stops):
  write_tokenizer(model, **settings)
  _, config, generation = export(tmp_path, model, *flags)
  assert config['eos_token_id'] == generation['eos_token_id'] == stops


def test_byte_tokens_stop_too_and_have_no_files(tmp_path, model):
  small_models.write(tmp_path / 'bytes')
  template = tmp_path / 'mine.jinja'
  template.write_text(TEMPLATE)
  out, config, generation = export(
    tmp_path,
    tmp_path / 'bytes',
    'tokenizer=byte',
    f'data.chat_template={template}',
  )
  assert config['eos_token_id'] == generation['eos_token_id'] == 257
  assert generation['pad_token_id'] == 258
  assert (out / 'chat_template.jinja').read_text() == TEMPLATE
  assert not (out / 'tokenizer.json').exists()


def test_a_tokenizer_json_brings_the_files_beside_it(tmp_path, model):
  write_tokenizer(tmp_path / 'other', chat_template=TEMPLATE, eos_token='<a>')
  path = tmp_path / 'other/tokenizer.json'
  out, config, _ = export(tmp_path, model, f'tokenizer={path}')
  assert config['eos_token_id'] == 5
  assert (out / 'tokenizer.json').read_bytes() == path.read_bytes()
  assert tokenizer_lib.load(str(out)).chat_templates == {'default': TEMPLATE}


@pytest.mark.parametrize('by_name', [True, False])
def test_the_template_in_use_goes_along(tmp_path, model, by_name):
  named = model / 'additional_chat_templates'
  named.mkdir()
  (named / 'short.jinja').write_text('short' + TEMPLATE)
  (named / 'tool_use.jinja').write_text(TOOLS)
  (model / 'chat_template.jinja').write_text(TEMPLATE)
  path = tmp_path / 'short.jinja'
  path.write_text('short' + TEMPLATE)
  choice = 'short' if by_name else path
  out, _, _ = export(tmp_path, model, f'data.chat_template={choice}')
  ours = tokenizer_lib.load(str(out))
  assert ours.chat_templates == {'default': 'short' + TEMPLATE}
  settings = json.loads((out / 'tokenizer_config.json').read_text())
  assert 'chat_template' not in settings


@pytest.mark.parametrize('start', ['', '\n', '  ', '\n  {% if x %}{% endif %}'])
def test_arguments_of_the_template_become_its_defaults(tmp_path, model, start):
  text = start + '{{ mood }}/{{ depth }}/{{ on }}' + TEMPLATE
  (model / 'chat_template.jinja').write_text(text)
  args = {'mood': 'x"\'\u00e9\n', 'depth': 3, 'on': None}
  out, _, _ = export(tmp_path, model, 'data.template_args=' + json.dumps(args))
  ours = tokenizer_lib.load(str(out))

  def render(source, **more):
    made = templates.ChatTemplate(
      source,
      special_tokens=ours.special_tokens,
      control_tokens=ours.control_tokens,
      where='t',
    )
    chat = [{'role': 'user', 'content': 'hi'}]
    return made.render(chat, where='r', **more).text

  baked = ours.chat_templates['default']
  assert render(baked) == render(text, **args)
  assert render(baked, depth=9) == render(text, **(args | {'depth': 9}))


def test_a_peft_folder_has_tokenizer_stops_and_template(tmp_path, model):
  flags = 'adapter.rank=2', 'adapter.export=peft'
  out = tmp_path / 'out'
  words = [f'--config.{flag}' for flag in flags]
  code = main_lib.main(
    [
      CONFIG,
      f'--workdir={tmp_path}/run',
      '--mode=export',
      f'--export_to={out}',
      '--config.model.preset=',
      f'--config.model.init_from={model}',
      '--config.tokenizer=',
      *words,
    ]
  )
  assert code == 0
  generation = json.loads((out / 'generation_config.json').read_text())
  assert generation['eos_token_id'] == [2, 3]
  assert tokenizer_lib.load(str(out)).chat_templates == {'default': TEMPLATE}
  assert not (out / 'config.json').exists()


def test_an_adapter_on_added_rows_is_exported_merged_only(
  tmp_path, model, capsys
):
  write_tokenizer(tmp_path / 'more')
  spec = json.loads((tmp_path / 'more/tokenizer.json').read_text())
  made = tokenizers.Tokenizer.from_str(json.dumps(spec))
  made.add_tokens(['more', 'tokens'])
  made.save(str(tmp_path / 'more/tokenizer.json'))
  base = [
    CONFIG,
    f'--workdir={tmp_path}/run',
    '--mode=export',
    '--config.model.preset=',
    f'--config.model.init_from={model}',
    f'--config.tokenizer={tmp_path}/more',
    '--config.adapter.rank=2',
  ]
  assert main_lib.main([*base, f'--export_to={tmp_path}/a']) == 2
  error = capsys.readouterr().err
  assert 'has 103 tokens, the model 101; fix: ' in error
  assert 'set model.add_rows=True' in error
  base.append('--config.model.add_rows=True')
  peft = [*base, '--config.adapter.export=peft', f'--export_to={tmp_path}/b']
  assert main_lib.main(peft) == 2
  assert "use 'merged'" in capsys.readouterr().err
  assert main_lib.main([*base, f'--export_to={tmp_path}/c']) == 0
  config = json.loads((tmp_path / 'c/config.json').read_text())
  assert config['vocab_size'] == 103
