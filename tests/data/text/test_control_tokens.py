"""Control tokens typed anywhere in a message stay text, or the record goes."""

import pytest

from dpo_jax.data.text import control_tokens, templates

TOKENS = control_tokens.ControlTokens(['<|im_start|>', '<|im_end|>', '<s>'])
TYPED = '<|im_end|><|im_start|>'


def render(source, *messages, **options):
  template = templates.ChatTemplate(source, control_tokens=TOKENS)
  return template.render(messages, **options).pieces


def of_text(pieces):
  return ''.join(p.text for p in pieces if p.is_content)


@pytest.mark.parametrize(
  'call',
  [
    {'arguments': {TYPED: 1}},
    {'arguments': {'role': TYPED}},
    {'arguments': {'type': TYPED}},
    {'type': TYPED},
    {'name': TYPED},
    {'id': [TYPED]},
    {'arguments': {'a': [{'b': TYPED}]}},
  ],
)
def test_tokens_in_keys_types_and_names_are_text(call):
  source = '<|im_start|>{{ messages[0].tool_calls | tojson }}<|im_end|>'
  message = {'role': 'assistant', 'tool_calls': [call]}
  pieces = render(source, message)
  assert TOKENS.count(pieces) == 2 and of_text(pieces) == TYPED
  assert TOKENS.found_in([message])
  # Tools are written as well.
  tools = '<|im_start|>{{ tools | tojson }}<|im_end|>'
  assert TOKENS.count(render(tools, message, tools=[call])) == 2


@pytest.mark.parametrize(
  ('written', 'typed'),
  [
    ('lower', 'a<|IM_END|>b'),
    ("replace('XX', '')", 'a<|im_XXend|>b'),
    ("list | join('')", 'a<|im_end|>b'),
    ('[:5]', '<|im_end|>'),
  ],
)
def test_what_a_template_rewrites_is_text_or_unsafe(written, typed):
  dot = '' if written.startswith('[') else ' | '
  source = f'<|im_start|>{{{{ messages[0].content{dot}{written} }}}}<|im_end|>'
  try:
    pieces = render(source, {'content': typed})
  except templates.UnsafeText:
    return
  assert TOKENS.count(pieces) == 2


def test_the_middle_of_a_token_between_two_ends_is_text():
  assert (
    TOKENS.count(render('<|{{ messages[0].name }}|>', {'name': 'im_end'})) == 0
  )


def test_harmless_text_stays_in_one_piece():
  source = (
    "{% for m in messages %}<|im_start|>{{ m.content.split('</x>')[-1] | "
    "replace('a', 'b') }}<|im_end|>{% endfor %}"
  )
  for text in (
    'end',
    'x < y',
    'if <|a|> im_start end s',
    'I',
    '</',
    '<x></x>im',
  ):
    pieces = render(source, {'content': text})
    assert len(pieces) == 1
    assert TOKENS.count(pieces) == 2


def test_a_short_message_within_a_token_that_is_written_as_python_is_kept():
  # The wrapping would be written as an escape, and the texts would differ.
  pieces = render('<|im_start|>{{ messages[0] }}', {'content': ' end\n'})
  assert len(pieces) == 1


def test_roles_and_types_that_are_words_are_compared_as_they_are():
  source = (
    "{% for m in messages if m.role == 'user' %}{% for p in m.content if "
    "p.type == 'text' %}{{ p.text }}{% endfor %}{% endfor %}"
  )
  part = {'type': 'text', 'text': TYPED}
  pieces = render(source, {'role': 'user', 'content': [part]})
  assert of_text(pieces) == TYPED


@pytest.mark.parametrize(
  'call', [{'im_end': 1}, {'a': {'im_end': '<s>'}}, {'type': 'im_end'}]
)
def test_a_word_that_the_template_completes_to_a_token_is_text(call):
  source = (
    '<|im_start|>{% for key, value in messages[0].call.items() recursive %}'
    '<|{{ key }}|><|{{ value if value is not mapping }}|>'
    '{{ loop(value.items()) if value is mapping }}{% endfor %}<|im_end|>'
  )
  pieces = render(source, {'role': 'user', 'call': call})
  assert '<|im_end|>' in ''.join(p.text for p in pieces)[:-10]
  assert TOKENS.count(pieces) == 2
  # A template that asks for the key by its name sees it.
  asked = '<s>{% if messages[0].call.im_end %}yes{% endif %}'
  text = ''.join(p.text for p in render(asked, {'call': call}))
  assert text == ('<s>yes' if 'im_end' in call else '<s>')


def test_a_token_that_a_template_makes_of_a_role_stays_one():
  tokens = control_tokens.ControlTokens(['<|user|>'])
  template = templates.ChatTemplate(
    '<|{{ messages[0].role }}|>', control_tokens=tokens
  )
  assert tokens.count(template.render([{'role': 'user'}]).pieces) == 1
