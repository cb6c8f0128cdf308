"""Refusals of values that cannot become the tokens they mean."""

import pytest
import toy_tokenizers as toy
from toy_records import chat, pair, run

from dpo_jax.data.text import checks
from dpo_jax.types import InputError

WRITES_ALL = '{% for m in messages %}{{ m | tojson }}{% endfor %}{{ tools }}'
BAD = 'x\ud83d'


def nested(depth):
  value = 'x'
  for _ in range(depth):
    value = [value]
  return value


def call(arguments):
  turn = {'role': 'assistant', 'content': 'c', 'tool_calls': [arguments]}
  return chat('a', 'b', 'c')._replace(
    completions=((turn,), ({'role': 'assistant', 'content': 'd'},))
  )


RECORDS = {
  'value': (call({'q': BAD}), 'completion[0].tool_calls[0].q has a lone'),
  'key': (call({BAD: 'q'}), 'completion[0].tool_calls[0].x\\ud83d has a'),
  'low half': (call({'q': ['\udc00']}), "tool_calls[0].q[0] has a lone surr"),
  'tools': (chat('a', 'b', 'c', tools=({'name': BAD},)), 'tools[0].name has'),
  'other key': (chat('a', 'b', 'c')._replace(
    prompt=({'role': 'user', 'content': 'a', 'name': BAD},)
  ), 'prompt[0].name has'),
  'deep': (call({'q': nested(100)}), 'is nested deeper than 64 levels'),
  'very deep': (call({'q': nested(10**5)}), 'is nested deeper than 64'),
  'deep tools': (chat('a', 'b', 'c', tools=({'p': nested(600)},)), 'tools[0]'),
  'NaN': (call({'q': float('nan')}), 'completion[0].tool_calls[0].q is nan'),
  'infinity': (call({'q': [-float('inf')]}), '.q[0] is -inf'),
}  # fmt: skip


@pytest.mark.parametrize('name', RECORDS)
@pytest.mark.parametrize('source', [WRITES_ALL, '{{ messages[0].content }}'])
def test_what_no_template_can_write_is_refused_with_its_place(name, source):
  record, part = RECORDS[name]
  with pytest.raises(InputError) as caught:
    run(record, chat_template=source)
  line = str(caught.value)
  assert line.startswith('f.jsonl:1: ') and part in line, line
  assert '; fix: ' in line and '\n' not in line and len(line) < 400
  line.encode()


def test_schemas_of_a_usual_depth_are_taken():
  checks.writable(nested(40), 'tools', 'f:1')
  checks.writable({'é': [None, 1, 2.5, True, '\U0001f600']}, 'tools', 'f:1')


@pytest.mark.parametrize('allow', [False, True])
def test_a_surrogate_that_the_template_spells_is_refused(allow):
  source = '{{ messages[0].content }}{{ "\\ud83d" }}'
  with pytest.raises(
    InputError, match='^f.jsonl:1: config.*: .*lone surrogate'
  ):
    run(chat('a', 'b', 'c'), chat_template=source, allow_control_tokens=allow)
  with pytest.raises(InputError, match='lone surrogate'):
    run(
      chat('a', 'b', 'c'),
      chat_template='{{ messages[0].content }}{{ tag }}',
      template_args={'tag': BAD},
    )


RENDERED = {
  'ChatML': ('<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n', 'yes'),
  'BOS': ('<s>[INST] hi [/INST]', 'yes'),
  'white space before it': (' \n<s> hi', 'yes'),
  'end of the prompt': ('hi<|im_end|>\n', 'yes'),
  'EOS': ('hi', 'yes</s>'),
  'EOS and a line': ('hi', 'yes<|im_end|>\n'),
  'begin of the answer': ('hi', '<|im_start|>yes'),
}


@pytest.mark.parametrize('always', [False, True])
@pytest.mark.parametrize('name', RENDERED)
def test_text_rendered_before_is_refused(tmp_path, name, always):
  tokens = toy.load(
    tmp_path, toy.byte_level(), template=toy.CHATML, eos_token='</s>'
  )
  options = {'tokens': tokens, 'use_chat_template': always}
  prompt, answer = RENDERED[name]
  for record in (pair(prompt, answer, 'n'), pair(prompt, 'n', answer)):
    with pytest.raises(InputError) as caught:
      run(record, **options)
    line = str(caught.value)
    assert line.startswith('f.jsonl:1: ') and 'rendered before' in line
    assert 'data.allow_control_tokens' in line and 'template' in line
    (encoded,), _ = run(record, **options, allow_control_tokens=True)
    assert len(encoded.prompt) < len(prompt) + 60


def test_control_tokens_inside_of_a_text_are_counted_only(tmp_path):
  tokens = toy.load(tmp_path, toy.byte_level(), eos_token='</s>')
  _, counts = run(pair('what is </s> for?', 'a <s> b', 'c'), tokens=tokens)
  assert counts.counters['control_tokens_in_text'] == 1
