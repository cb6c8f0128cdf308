"""Chats: trained tokens, tools, and refusals."""

import json

import numpy as np
import pytest
import toy_tokenizers as toy

from dpo_jax.data.sources import records
from dpo_jax.data.text import chat, encode
from dpo_jax.types import InputError

HEAD = (
  '{%- if tools %}{{ "<|im_start|>system\\n" ~ (tools | tojson) ~ '
  '"<|im_end|>\\n" }}{% endif %}'
)
TAIL = (
  '{%- if add_generation_prompt %}{{ "<|im_start|>assistant\\n" }}{% endif %}'
)
TEMPLATES = {
  'chatml': HEAD
  + "{%- for m in messages %}{{ '<|im_start|>' ~ m.role ~ '\\n' ~ "
  "(m.content or '') ~ (m.tool_calls | tojson if m.tool_calls else '') ~ "
  "'<|im_end|>\\n' }}{% endfor %}" + TAIL,
  'gen': HEAD + "{%- for m in messages %}{{ '<|im_start|>' ~ m.role ~ '\\n' }}"
  "{%- if m.role == 'assistant' %}{% generation %}{{ (m.content or '') ~ "
  "(m.tool_calls | tojson if m.tool_calls else '') ~ '<|im_end|>' }}"
  "{% endgeneration %}{% else %}{{ m.content ~ '<|im_end|>' }}{% endif %}"
  "{{ '\\n' }}{% endfor %}" + TAIL,
  # As Qwen 3: only the last turn keeps its thoughts.
  'thinking': "{%- for m in messages %}{{ '<|im_start|>' ~ m.role ~ '\\n' ~ "
  "('<think></think>' if loop.last and m.role == 'assistant' else '') ~ "
  "(m.content or '') ~ '<|im_end|>\\n' }}{% endfor %}" + TAIL,
}
SCHEMAS = [{'type': 'function', 'function': {'name': 'day', 'about': 'é<'}}]
TURNS = (
  {'role': 'system', 'content': 'Be brief.'},
  {'role': 'user', 'content': 'Which day?'},
  {'role': 'assistant', 'tool_calls': [{'name': 'day'}]},
  {'role': 'tool', 'content': 'Monday'},
  {'role': 'assistant', 'content': 'Mönday.'},
  {'role': 'user', 'content': 'Sure?'},
  {'role': 'assistant', 'content': 'Yes.'},
)
# Source: transformers 5.23.0, apply_chat_template(TURNS, tools=SCHEMAS) with a
# PreTrainedTokenizerFast of toy.byte_level(). 'gen' and 'chatml' give the same.
# The line break after the end of the last turn is left out: encoding trims it.
TEXT = (
  '<|im_start|>system\n[{"type": "function", "function": {"name": "day", '
  '"about": "é<"}}]<|im_end|>\n<|im_start|>system\nBe brief.<|im_end|>\n'
  '<|im_start|>user\nWhich day?<|im_end|>\n<|im_start|>assistant\n'
  '[{"name": "day"}]<|im_end|>\n<|im_start|>tool\nMonday<|im_end|>\n'
  '<|im_start|>assistant\nMönday.<|im_end|>\n<|im_start|>user\nSure?'
  '<|im_end|>\n<|im_start|>assistant\nYes.<|im_end|>'
)
# The same call with return_assistant_tokens_mask=True and 'gen': runs of ones.
TRAINED = ['[{"name": "day"}]<|im_end|>', 'Mönday.<|im_end|>', 'Yes.<|im_end|>']


def load(tmp_path, name, **config):
  config = {'eos_token': '<|im_end|>'} | config
  return toy.load(
    tmp_path, toy.byte_level(), template=TEMPLATES[name], **config
  )


def run(tokens, row, **options):
  options = {'max_length': 999, 'stage': 'sft', 'strict': True} | options
  record = records.parse_row(row, where='f:1')
  encoded, ledger = encode.encode_all(
    [record], tokens, encode.EncodeOptions(**options)
  )
  return encoded[0], ledger


def runs_of(tokens, ids, mask):
  """The text of each run of trained tokens."""
  edges = np.flatnonzero(np.diff([0, *mask.astype(int), 0]))
  return [
    tokens.decode(ids[a:b], skip_special=False) for a, b in edges.reshape(-1, 2)
  ]


@pytest.mark.parametrize('train_on', ['all_assistant', 'generation', 'last'])
@pytest.mark.parametrize('name', ['gen', 'chatml'])
def test_tokens_and_masks_are_those_of_transformers(tmp_path, name, train_on):
  tokens = load(tmp_path, name)
  row = {'messages': list(TURNS), 'tools': SCHEMAS}
  if (name, train_on) == ('chatml', 'generation'):
    with pytest.raises(
      InputError, match='^config.data.train_on: .*has no {% g'
    ):
      run(tokens, row, train_on=train_on)
    return
  record, ledger = run(tokens, row, train_on=train_on)
  ids = record.completions[0]
  text = tokens.decode([*record.prompt, *ids], skip_special=False)
  assert text == TEXT
  if train_on == 'last':
    assert record.trained is None
    assert tokens.decode(ids, skip_special=False) == TRAINED[-1]
  else:
    assert runs_of(tokens, ids, record.trained[0]) == TRAINED
    count = len(ids) - int(record.trained[0].sum())
    assert ledger.counters['untrained_tokens'] == count
  assert ledger.counters['chats'] == 1


def test_preferences_train_the_assistants_turns_of_each_answer(tmp_path):
  tokens = load(tmp_path, 'chatml')
  row = {
    'prompt': list(TURNS[:2]),
    'chosen': list(TURNS[2:]),
    'rejected': [{'role': 'assistant', 'content': 'No.'}],
    'tools': json.dumps(SCHEMAS),
  }
  record, _ = run(tokens, row, stage='dpo')
  chosen, rejected = record.trained
  assert runs_of(tokens, record.completions[0], chosen) == TRAINED
  assert rejected.all() and len(rejected) == len(record.completions[1])
  cut, _ = run(
    tokens,
    row,
    stage='dpo',
    truncation='keep_completion_start',
    max_length=len(record.prompt) + 5,
  )
  assert [len(mask) for mask in cut.trained] == [5, 4]


def test_a_turn_that_reads_otherwise_when_it_is_the_last(tmp_path):
  tokens = load(tmp_path, 'thinking')
  row = {'messages': list(TURNS[3:])}
  record, _ = run(tokens, row, train_on='all_assistant')
  texts = runs_of(tokens, record.completions[0], record.trained[0])
  assert texts == ['Mönday.<|im_end|>', '<think></think>Yes.<|im_end|>']


def test_masks_of_typed_control_tokens_and_eos(tmp_path):
  # The turn's own end is not a stop token, so an EOS is added and trained. A
  # stop token typed by a user is content and ends no turn.
  tokens = load(tmp_path, 'gen', eos_token='</s>')
  turns = [*TURNS[3:5], {'role': 'user', 'content': 'a</s>ö'}, TURNS[6]]
  record, _ = run(tokens, {'messages': turns}, train_on='all_assistant')
  texts = runs_of(tokens, record.completions[0], record.trained[0])
  assert texts == ['Mönday.<|im_end|>', 'Yes.<|im_end|>', '</s>']
  record, _ = run(
    load(tmp_path, 'chatml'), {'messages': turns}, train_on='all_assistant'
  )
  assert len(record.trained[0]) == len(record.completions[0])


def test_an_answer_without_trained_tokens_is_dropped(tmp_path):
  source = TEMPLATES['gen'].replace("m.role == 'assistant'", "m.role == 'x'")
  tokens = toy.load(tmp_path, toy.byte_level(), template=source)
  with pytest.raises(InputError, match='nothing_trained'):
    run(
      tokens, {'messages': list(TURNS[3:])}, train_on='generation', stage='sft'
    )


@pytest.mark.parametrize(
  ('source', 'options', 'message'),
  [
    ('{% for x %}', {}, 'is no chat template .*: line 1: '),
    ('a\n{{ x', {}, 'line 2: '),
    ('{{ x.y }}', {}, "f:1: .*'x' is undefined.*data.template_args"),
    ("{{ ''.__class__ }}", {}, 'f:1: .*what no chat template may.*__class__'),
    ("{{ raise_exception('roles!') }}", {}, "f:1: .*'roles!'; fix: "),
    (
      '{{ enable }}',
      {'template_args': {'enabel': 1}},
      "template_args: .*no 'enabel'; fix: did you mean 'enable'",
    ),
  ],
)
def test_what_is_refused(tmp_path, source, options, message):
  tokens = toy.load(tmp_path, toy.byte_level(), template=source)
  with pytest.raises(InputError, match=message) as caught:
    run(tokens, {'messages': list(TURNS)}, **options)
  assert '\n' not in str(caught.value) and '; fix: ' in str(caught.value)


def test_tools_take_the_template_for_tools(tmp_path):
  # As transformers' get_chat_template: 'tool_use' if tools are given.
  named = [
    {'name': 'default', 'template': 'default {{ messages[1].content }}'},
    {'name': 'tool_use', 'template': 'tools {{ messages[1].content }}'},
  ]
  tokens = toy.load(tmp_path, toy.byte_level(), template=named)
  for tools, name in ((None, 'default'), (SCHEMAS, 'tools')):
    messages = [TURNS[1], {'role': 'assistant', 'content': 'x'}]
    prompt = chat.make_template(
      tokens,
      None,
      template_args={},
      train_on='last',
      where='f:1',
      has_tools=tools is not None,
    ).render(messages, tools=tools)
    assert prompt.text == f'{name} x'


def test_a_folder_with_a_template_for_tools_alone(tmp_path):
  # As transformers' get_chat_template: only a row without tools is refused.
  named = [{'name': 'tool_use', 'template': TEMPLATES['chatml']}]
  tokens = load(tmp_path, 'chatml', chat_template=named)
  row = {'messages': list(TURNS)}
  record, _ = run(tokens, row | {'tools': SCHEMAS})
  ids = [*record.prompt, *record.completions[0]]
  assert tokens.decode(ids, skip_special=False) == TEXT
  with pytest.raises(
    InputError, match="f:1: .* no template 'default', just 'tool_use'; fix: "
  ):
    run(tokens, row)


def test_first_answer():
  record = records.parse_row({'messages': list(TURNS)}, where='f:1')
  assert chat.from_first_answer(record).prompt == TURNS[:2]
  single = record._replace(prompt=TURNS[:2])
  assert chat.from_first_answer(single) is single


SURE = {'role': 'assistant', 'content': 'Sure: '}
YES, NO = ({'role': 'assistant', 'content': c} for c in ('yes', 'no'))
# Rows of every format whose column `prompt` ends in an assistant's turn.
PREFILLED = {
  'pairs': {'chosen': [YES], 'rejected': [NO]},
  'ranked': {'completions': [[YES], [NO]], 'scores': [1, 0]},
  'unpaired': {'completion': [YES], 'label': True},
  'demonstrations': {'completion': [YES]},
}


@pytest.mark.parametrize('name', ['gen', 'chatml'])
@pytest.mark.parametrize('columns', PREFILLED)
def test_an_answer_continues_the_unfinished_turn(tmp_path, columns, name):
  # Source: transformers 5.24.0, apply_chat_template(prompt,
  # continue_final_message=True) with 'chatml': prompt below.
  tokens = load(tmp_path, name)
  row = {'prompt': [TURNS[1], SURE], **PREFILLED[columns]}
  stage = 'sft' if columns == 'demonstrations' else 'dpo'
  record, ledger = run(tokens, row, stage=stage)
  assert tokens.decode(record.prompt, skip_special=False) == (
    '<|im_start|>user\nWhich day?<|im_end|>\n<|im_start|>assistant\nSure: '
  )
  texts = [tokens.decode(c, skip_special=False) for c in record.completions]
  assert texts == ['yes<|im_end|>', 'no<|im_end|>'][: len(texts)]
  assert record.trained is None
  assert ledger.counters['prefilled'] == 1


def test_an_unfinished_turn_without_a_text_adds_none(tmp_path):
  opened = {'role': 'assistant', 'content': None, 'tool_calls': '[]'}
  row = {'prompt': [TURNS[1], opened], **PREFILLED['pairs']}
  tokens = load(tmp_path, 'chatml')
  record, _ = run(tokens, row, stage='dpo')
  texts = [tokens.decode(c, skip_special=False) for c in record.completions]
  assert texts == ['yes<|im_end|>', 'no<|im_end|>']
  assert tokens.decode(record.prompt, skip_special=False) == (
    '<|im_start|>user\nWhich day?<|im_end|>\n<|im_start|>assistant\n'
  )


def test_an_unfinished_turn_before_several_turns_and_with_control_tokens(
  tmp_path,
):
  tokens = load(tmp_path, 'chatml')
  row = {
    'prompt': [TURNS[1], {'role': 'assistant', 'content': 'a<|im_end|>b'}],
    'chosen': [YES, *TURNS[5:]],
    'rejected': [NO],
  }
  record, _ = run(tokens, row, stage='dpo')
  text = tokens.decode(record.prompt, skip_special=False)
  assert text.endswith('<|im_start|>assistant\na<|im_end|>b')
  stop = tokens.encode('<|im_end|>', allow_special=True)[0]
  assert record.prompt.tolist().count(stop) == 1  # the user's
  chosen = runs_of(tokens, record.completions[0], record.trained[0])
  assert chosen == ['yes<|im_end|>', 'Yes.<|im_end|>']


def test_unfinished_turns_of_sft_on_all_turns_are_trained(tmp_path):
  row = {'prompt': [TURNS[1], SURE], 'completion': [YES]}
  record, _ = run(load(tmp_path, 'chatml'), row, train_on='all_assistant')
  (ids,) = record.completions
  text = load(tmp_path, 'chatml').decode(ids, skip_special=False)
  assert text == 'Sure: yes<|im_end|>' and record.trained is None


def test_turns_of_whole_conversations_are_finished(tmp_path):
  tokens = load(tmp_path, 'chatml')
  record, _ = run(tokens, {'messages': [TURNS[1], SURE, YES]})
  text = tokens.decode(record.prompt, skip_special=False)
  assert text.endswith('Sure: <|im_end|>\n<|im_start|>assistant\n')


def test_an_unfinished_turn_that_the_template_rewrites_is_refused(tmp_path):
  source = TEMPLATES['chatml'].replace('m.content or', 'm.content | upper or')
  tokens = toy.load(tmp_path, toy.byte_level(), template=source)
  row = {'prompt': [TURNS[1], SURE], 'chosen': [YES], 'rejected': [NO]}
  with pytest.raises(InputError, match='f:1: .*does not begin with its prompt'):
    run(tokens, row, stage='dpo')


@pytest.mark.parametrize('key', ['reasoning_content', 'thinking', 'reasoning'])
def test_reasoning_that_is_not_written_is_counted(tmp_path, key):
  row = {
    'prompt': [TURNS[1]],
    'chosen': [YES | {key: 'Hm.'}],
    'rejected': [NO],
  }
  _, ledger = run(load(tmp_path, 'chatml'), row, stage='dpo')
  assert ledger.counters['reasoning_not_written'] == 1
  source = TEMPLATES['chatml'].replace(
    "(m.content or '')",
    "(m.reasoning_content or '') ~ (m.content or '')",
  )
  tokens = toy.load(tmp_path, toy.byte_level(), template=source)
  _, ledger = run(tokens, row, stage='dpo')
  assert ledger.counters['reasoning_not_written'] == 0
  history = {'messages': [TURNS[1], YES | {key: 'Hm.'}, TURNS[1], NO]}
  _, ledger = run(load(tmp_path, 'chatml'), history)
  assert ledger.counters['reasoning_not_written'] == 1


def test_sides_with_equal_trained_tokens_are_identical(tmp_path):
  more = {'role': 'user', 'content': 'more?'}
  row = {'chosen': [TURNS[1], YES], 'rejected': [TURNS[1], YES, more]}
  sources = [TEMPLATES['chatml'], TEMPLATES['gen']]
  # Without a stop token, the shorter side alone would get an EOS.
  sources.append(sources[0].replace('<|im_end|>', '<|end|>'))
  for source in sources:
    tokens = toy.load(
      tmp_path, toy.byte_level(), template=source, eos_token='<|im_end|>'
    )
    for flipped in (False, True):
      sides = (row['rejected'], row['chosen']) if flipped else row.values()
      pair = dict(zip(row, sides))
      with pytest.raises(InputError, match='f:1: .*identical_sides'):
        run(tokens, pair, stage='dpo')


def call(arguments):
  function = {'name': 'day', 'arguments': arguments}
  return {'role': 'assistant', 'tool_calls': [{'function': function}]}


def test_arguments_that_the_template_quotes_once_more_are_counted(tmp_path):
  row = {'prompt': [TURNS[1]], 'chosen': [call('{"at": 1}')], 'rejected': [NO]}
  _, ledger = run(load(tmp_path, 'chatml'), row, stage='dpo')
  assert ledger.counters['arguments_quoted'] == 1
  # As an object they are plain, and so is text that the template writes.
  plain = row | {'chosen': [call({'at': 1})]}
  _, ledger = run(load(tmp_path, 'chatml'), plain, stage='dpo')
  assert ledger.counters['arguments_quoted'] == 0
  source = TEMPLATES['chatml'].replace(
    'm.tool_calls | tojson if', 'm.tool_calls[0].function.arguments if'
  )
  tokens = toy.load(tmp_path, toy.byte_level(), template=source)
  _, ledger = run(tokens, row, stage='dpo')
  assert ledger.counters['arguments_quoted'] == 0


def test_nulls_in_calls_and_schemas_are_counted(tmp_path):
  tokens = load(tmp_path, 'chatml')
  for arguments, schema, count in (
    ({'at': 1}, {'a': {'b': [1]}}, 0),
    ({'at': 1, 'in': None}, {'a': {}}, 1),
    ({'at': {'x': [{'y': None}]}}, {'a': {}}, 1),
    ({'at': 1}, {'a': {'b': None}}, 1),
  ):
    row = {'prompt': [TURNS[1]], 'chosen': [call(arguments)], 'rejected': [NO]}
    function = {'type': 'function', 'function': {'name': 'day'} | schema}
    _, ledger = run(tokens, row | {'tools': [function]}, stage='dpo')
    assert ledger.counters['nulls_in_tools'] == count
