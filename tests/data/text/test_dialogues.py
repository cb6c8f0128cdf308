r"""Human/Assistant texts: the human's turns are read and never trained.

Expected spans are written by hand from the rule of dialogues.py.
"""

import pytest
import toy_tokenizers as toy
from toy_records import ids, pair, run

from dpo_jax.data.text import dialogues
from dpo_jax.types import Comparison, PreferenceRecord

PROMPT = '\n\nHuman: Hi\n\nAssistant:'
LONG = ' Hello.\n\nHuman: Bye\n\nAssistant: See you.'
# (prompt, completion, its trained parts; None = all)
CASES = {
  'one turn': (PROMPT, ' Hello.', None),
  'two turns': (PROMPT, LONG, [' Hello.', ' See you.']),
  'three turns': (
    PROMPT,
    LONG + '\n\nHuman: ?\n\nAssistant: !',
    [' Hello.', ' See you.', ' !'],
  ),
  'the human last': (PROMPT, ' Hello.\n\nHuman: Bye', [' Hello.']),
  'no answer': (PROMPT, '\n\nHuman: Bye', []),
  'mark in the answer': (
    '\n\nHuman: Hi',
    '\n\nAssistant: A.\n\nHuman: B\n\nAssistant: C.',
    ['\n\nAssistant: A.', ' C.'],
  ),
  'no line before it': (PROMPT[2:], LONG, [' Hello.', ' See you.']),
  'white space after it': (PROMPT + ' ', LONG[1:], ['Hello.', ' See you.']),
  'no dialogue': ('Write a play.', LONG, None),
}  # fmt: skip


@pytest.mark.parametrize('name', CASES)
def test_spans(name):
  prompt, completion, parts = CASES[name]
  spans = dialogues.trained(prompt, completion)
  if parts is None:
    assert spans is None
  else:
    assert [completion[a:b] for a, b in spans] == parts


def trained_text(record, k):
  mask = record.trained[k] if record.trained else slice(None)
  ids_of_k = [int(i) for i in record.completions[k][mask]]
  return bytes(i for i in ids_of_k if i < 256).decode(), ids_of_k.count(257)


def test_the_humans_turns_are_not_trained():
  (record,), counts = run(pair(PROMPT, LONG, ' What?' + LONG[7:]))
  assert trained_text(record, 0) == (' Hello. See you.', 1)
  assert trained_text(record, 1) == (' What? See you.', 1)
  assert counts.counters['human_turns'] == 1
  assert counts.counters['untrained_tokens'] == 2 * len(
    '\n\nHuman: Bye\n\nAssistant:'
  )


def test_demonstrations_and_labelled_answers_too():
  one = PreferenceRecord(PROMPT, (LONG,), (Comparison(0, 0),), where='f:1')
  for stage, record in (
    ('sft', one),
    ('dpo', one._replace(comparisons=(), labels=(True,))),
  ):
    (encoded,), _ = run(record, stage=stage)
    assert trained_text(encoded, 0) == (' Hello. See you.', 1)


def test_no_eos_follows_the_human_and_it_makes_no_sides_different():
  (record,), _ = run(pair(PROMPT, ' Hello.\n\nHuman: Bye', ' No.'))
  assert trained_text(record, 0) == (' Hello.', 0)
  assert trained_text(record, 1) == (' No.', 1)
  _, counts = run(pair(PROMPT, ' Hello.\n\nHuman: Bye', ' Hello.'))
  assert counts.dropped == {'identical_sides': 1}
  _, counts = run(pair(PROMPT, LONG, LONG.replace('Bye', 'Why')))
  assert counts.dropped == {'identical_sides': 1}
  _, counts = run(pair(PROMPT, '\n\nHuman: Bye', ' Hello.'))
  assert counts.dropped == {'nothing_trained': 1}


def test_a_template_gets_the_turns(tmp_path):
  tokens = toy.load(
    tmp_path, toy.byte_level(), template=toy.CHATML, eos_token='<|im_end|>'
  )
  options = {'tokens': tokens, 'use_chat_template': True, 'max_length': 999}
  (record,), _ = run(pair(PROMPT, LONG, ' No.'), **options)
  prompt, (chosen, _) = ids(record)
  assert tokens.decode(prompt, skip_special=False) == (
    '<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n'
  )
  assert tokens.decode(chosen, skip_special=False) == (
    'Hello.<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n'
    '<|im_start|>assistant\nSee you.<|im_end|>'
  )
  masked = record.completions[0][record.trained[0]]
  text = tokens.decode(masked, skip_special=False)
  assert text == 'Hello.<|im_end|>See you.<|im_end|>'
