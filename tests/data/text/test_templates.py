"""Chat templates: renderings equal transformers', typed tokens stay text."""

import pytest

from dpo_jax.data.text import chat, templates
from dpo_jax.types import InputError

NAMES = {'bos_token': '<s>', 'eos_token': '</s>'}
CONTROLS = templates.ControlTokens(
  ['<s>', '</s>', '<|im_start|>', '<|im_end|>']
)

CHATML = (
  "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + "
  "message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
  "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
LLAMA = """{%- set ns = namespace(system='') %}
{%- for message in messages %}
    {%- if message.role == 'system' %}
        {%- set ns.system = message.content | trim %}
        {%- continue %}
    {%- endif %}
    {%- if loop.first or (loop.index0 == 1 and ns.system) %}
        {{- bos_token }}
    {%- endif %}
    {%- if message.role == 'user' %}
        {{- '[INST] ' ~ ('<<SYS>>\\n' ~ ns.system ~ '\\n<</SYS>>\\n\\n' if ns.system and loop.index0 == 1 else '') ~ message.content.strip() ~ ' [/INST]' }}
    {%- elif message.role == 'assistant' %}
        {{- ' ' ~ message.content.strip() ~ ' ' ~ eos_token }}
    {%- else %}
        {{- raise_exception('Unknown role: ' ~ message.role) }}
    {%- endif %}
{%- endfor %}
"""  # noqa: E501
ZEPHYR = """{% for message in messages %}
    {% if message['role'] in ['user', 'system'] %}
{{ '<|' ~ message['role'] ~ '|>' }}
{{ message['content'] }}{{ eos_token }}
    {% elif message['role'] == 'assistant' %}
<|assistant|>
{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}

    {% endif %}
    {% if loop.last and add_generation_prompt %}
<|assistant|>
    {% endif %}
{% endfor %}
"""
TOOLS = """{%- if tools %}
{{- '<|system|>Tools: ' }}{{ tools | tojson }}
{%- endif %}
{%- for m in messages -%}
  {%- if m.role == 'system' and tools is none %}{{ '<|system|>' }}{{ m.content | trim }}{% break %}
  {%- endif %}
<|{{ m.role }}|>
  {%- if m.content is string %}{{ m.content | trim | replace('\\t', '  ') }}
  {%- else %}
    {%- for part in m.content if part.type == 'text' %}({{ loop.index }}/{{ loop.length }}){{ part['text'] }}{% endfor %}
  {%- endif %}
  {%- for call in m.tool_calls or [] %}{{ call | tojson(indent=1) }}{% endfor %}
  {%- if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}
  {%- if not loop.last %}{{ "%s|%d" % (m.role, loop.revindex) }}{% endif %}
{% endfor -%}
{% macro close(x) %}[{{ x|upper }}]{% endmacro -%}
{{ close('end') }}{{ messages | map(attribute='role') | join(',') }}{{ documents is none }}"""  # noqa: E501

CHAT = (
  {'role': 'system', 'content': ' Be brief.\n'},
  {'role': 'user', 'content': '  Hi "there" & <b>é日</b>\n\n'},
  {'role': 'assistant', 'content': 'Yes\tsir. '},
  {'role': 'user', 'content': 'Why?'},
)
ANSWER = ({'role': 'assistant', 'content': '\nBecause. '},)
RICH = (
  {
    'role': 'user',
    'content': [
      {'type': 'image'},
      {'type': 'text', 'text': 'a '},
      {'type': 'text', 'text': 'ü'},
    ],
  },
  {
    'role': 'assistant',
    'content': ' x ',
    'reasoning': 'hm',
    'tool_calls': [{'name': 'f', 'arguments': {'q': 'é<'}}],
  },
)

# Source: transformers 5.23.0, render_jinja_template (which apply_chat_template
# calls) of the templates above, bos_token='<s>', eos_token='</s>'. Each has
# CHAT with the generation prompt, and the text that CHAT + ANSWER adds to it.
RENDERED = {
  'chatml': (
    CHATML,
    '<|im_start|>system\n Be brief.\n<|im_end|>\n<|im_start|>user\n  Hi '
    '"there" & <b>é日</b>\n\n<|im_end|>\n<|im_start|>assistant\nYes\tsir. '
    '<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n',
    '\nBecause. <|im_end|>\n',
  ),
  'llama': (
    LLAMA,
    '<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi "there" & <b>é日</b> '
    '[/INST] Yes\tsir. </s>[INST] Why? [/INST]',
    ' Because. </s>',
  ),
  'zephyr': (
    ZEPHYR,
    '<|system|>\n Be brief.\n</s>\n<|user|>\n  Hi "there" & <b>é日</b>\n\n'
    '</s>\n<|assistant|>\nYes\tsir. </s>\n<|user|>\nWhy?</s>\n<|assistant|>\n',
    '\nBecause. </s>\n',
  ),
}
TOOLS_RENDERED = (
  '<|system|>Tools: [{"name": "f", "description": "é"}]<|user|>(1/2)a (2/2)ü'
  'user|2<|assistant|>x{\n "name": "f",\n "arguments": {\n  "q": "é<"\n }\n}'
  '<think>hm</think>[END]user,assistantTrue'
)


def make(source, controls=CONTROLS, **options):
  return templates.ChatTemplate(
    source, special_tokens=NAMES, control_tokens=controls, **options
  )


def joined(rendered):
  pieces = getattr(rendered, 'pieces', rendered)
  return ''.join(piece.text for piece in pieces)


@pytest.mark.parametrize('name', RENDERED)
def test_renders_what_transformers_renders(name):
  source, prompt, rest = RENDERED[name]
  template = make(source)
  pieces = template.render(CHAT, add_generation_prompt=True).pieces
  assert pieces == (templates.Piece(prompt, False),)
  assert joined(template.render(CHAT + ANSWER)) == prompt + rest


@pytest.mark.parametrize('name', RENDERED)
def test_prompt_and_completion_are_the_whole_rendering(name):
  source, prompt, rest = RENDERED[name]
  start, rests, spans = chat.render_record(
    make(source), CHAT, (ANSWER, ANSWER), where='f:1'
  )
  assert joined(start) == prompt
  assert [joined(pieces) for pieces in rests] == [rest, rest]


def test_tools_parts_and_reasoning_render_as_in_transformers():
  tools = [{'name': 'f', 'description': 'é'}]
  assert joined(make(TOOLS).render(RICH, tools=tools)) == TOOLS_RENDERED
  # The same source, CHAT without tools: a break, a macro, `documents is none`.
  assert joined(make(TOOLS).render(CHAT)) == (
    '<|system|>Be brief.[END]system,user,assistant,userTrue'
  )


def test_null_keys_and_empty_reasoning_are_as_in_transformers():
  # Source: transformers 5.23.0, apply_chat_template. It drops the null keys of
  # a message, and keeps reasoning that is ''.
  source = (
    "{% for m in messages %}{{ 'c' if m.content is defined }}{{ m.content }}"
    '{{ m.tool_calls is defined }}{{ m.tool_calls }}'
    "{% if m.reasoning_content is defined %}{{ '<' ~ m.reasoning_content ~ "
    "'|' ~ m.thinking ~ '>' }}{% endif %};{% endfor %}"
  )
  call = {'name': 'f', 'arguments': None}
  messages = (
    {'role': 'user', 'content': 'a', 'tool_calls': None, 'thinking': None},
    {'role': 'assistant', 'content': None, 'tool_calls': [call]},
    {
      'role': 'assistant',
      'content': '',
      'reasoning_content': '',
      'reasoning': 'r',
    },
    {'role': 'assistant', 'content': 'b', 'thinking': '', 'reasoning': 'r'},
  )
  assert joined(make(source).render(messages)) == (
    "caFalse;True[{'name': 'f', 'arguments': None}];cFalse<|>;cbFalse<|>;"
  )


def test_strftime_now_writes_the_given_date():
  source = "{{ strftime_now('%d %b %Y %H:%M') }}"
  template = templates.ChatTemplate(source, date='2024-02-29')
  assert joined(template.render(CHAT)) == '29 Feb 2024 00:00'
  with pytest.raises(InputError, match='strftime_now has no date'):
    make(source).render(CHAT)


@pytest.mark.parametrize('name', RENDERED)
@pytest.mark.parametrize(
  'typed', ['<|im_end|>', 'a</s>b<s>', ' </s> ', '</', 's>x<|im_st', '</s></s>']
)
def test_typed_control_tokens_are_content_and_change_no_text(name, typed):
  messages = tuple({**m, 'content': m['content'] + typed} for m in CHAT)
  template = make(RENDERED[name][0])
  plain = template.render(messages, allow_control_tokens=True).pieces
  pieces = template.render(messages).pieces
  assert len(plain) == 1 and joined(pieces) == plain[0].text
  # The template text has the control tokens of a chat with plain messages.
  clean = tuple({**m, 'content': 'x'} for m in CHAT)
  tokens = [
    token
    for piece in pieces
    if not piece.is_content
    for token in CONTROLS.pattern.findall(piece.text)
  ]
  assert tokens == CONTROLS.pattern.findall(joined(template.render(clean)))


def test_a_token_made_of_a_message_and_the_template_is_no_token():
  template = make('{{ messages[0].content }}|im_end|>{{ messages[1].content }}')
  pieces = template.render(({'content': 'a <'}, {'content': 'ok'})).pieces
  assert [(p.text, p.is_content) for p in pieces] == [
    ('a ', False),
    ('<', True),
    ('|im_end|>ok', False),
  ]
  template = make('<|im_{{ messages[0].content | trim }}|im_end|>')
  pieces = template.render(({'content': ' end|> < '},)).pieces
  assert [(p.text, p.is_content) for p in pieces] == [
    ('<|im_', False),
    ('end|>', True),
    (' ', False),
    ('<', True),
    ('|im_end|>', False),
  ]


def test_names_calls_and_thoughts_are_content_too():
  source = (
    '{% for m in messages %}{{ m.role }}{{ m.name }}{{ m.tool_calls | tojson }}'
    '{{ m.reasoning_content }}{% endfor %}'
  )
  message = {
    'role': 'user',
    'name': '<s>',
    'tool_calls': [{'arguments': {'q': ['</s>']}}],
    'thinking': '<|im_end|>',
  }
  pieces = make(source).render((message,)).pieces
  assert [p.text for p in pieces if p.is_content] == [
    '<s>',
    '</s>',
    '<|im_end|>',
  ]


def test_a_template_that_tests_messages_sees_them_as_they_are():
  source = (
    "{% for m in messages %}{{ m.content.split('</think>')[-1].lstrip() if "
    "m.content.startswith('<think>') else m.content | length }}{% endfor %}"
  )
  messages = ({'content': '<think>a</think>\n b'}, {'content': 'four'})
  assert joined(make(source).render(messages)) == 'b4'


def test_rewritten_control_tokens_are_unsafe_not_wrong():
  template = make('{{ messages[0].content | length }}')
  assert joined(template.render(({'content': 'abcd'},))) == '4'
  with pytest.raises(templates.UnsafeText, match='f:7: .*; fix: '):
    template.render(({'content': '<s>'},), where='f:7')


def test_noncharacters_in_a_message_are_left_alone():
  messages = ({'role': 'user', 'content': '\ufdd0</s>\ufdd1'},)
  pieces = make(CHATML).render(messages).pieces
  assert [p.text for p in pieces if p.is_content] == ['</s>']
  assert '\ufdd0</s>\ufdd1' in joined(pieces)


def test_a_generation_prompt_that_the_answer_does_not_repeat_is_refused():
  source = (
    '{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}'
    "{% if add_generation_prompt %}{{ 'assistant:<think>' }}{% endif %}"
  )
  with pytest.raises(InputError) as caught:
    chat.render_record(make(source), CHAT, (ANSWER,), where='f:3')
  assert str(caught.value).startswith(
    'f:3: chat template: the conversation does not begin with its prompt'
  )
  assert "'<think>'" in str(caught.value) and '; fix: ' in str(caught.value)


def test_what_a_template_raises_names_the_row_on_one_line():
  with pytest.raises(InputError) as caught:
    make(LLAMA).render(({'role': 'tool', 'content': 'x'},), where='f:4')
  assert str(caught.value) == (
    "f:4: chat template: the template cannot render the messages: 'Unknown "
    "role: tool'; fix: give messages that this template takes, or another "
    'template'
  )
  with pytest.raises(InputError, match='f:5: .* steps'):
    bomb = '{% for i in range(99999) %}' * 2 + '{% endfor %}' * 2
    make(bomb).render(CHAT, where='f:5')


@pytest.mark.parametrize(
  'source', ['{% for %}', '{{ a', '{% foo %}', '{{' * 999]
)
def test_source_that_is_no_template_is_refused(source):
  with pytest.raises(InputError) as caught:
    make(source, where='m/chat_template.jinja')
  text = str(caught.value)
  assert text.startswith('m/chat_template.jinja: is no chat template')
  assert '\n' not in text


def test_rendering_leaves_the_messages_as_they_were():
  before = [dict(m) for m in CHAT]
  make(CHATML).render(CHAT)
  assert [dict(m) for m in CHAT] == before
