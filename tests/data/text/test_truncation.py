"""Truncation: what each policy cuts, and what it drops."""

import pytest
import toy_tokenizers as toy
from toy_records import chat, dropped, ids, pair, run

from dpo_jax.types import InputError

LONG = [
  # policy, max_length, prompt_max_length -> prompt, completions | reason.
  # The prompt is BOS a b c d (5 tokens), the sides e f g EOS (4) and h EOS (2).
  ('drop', 9, None, '^abcd', ['efg$', 'h$']),
  ('drop', 8, None, 'too_long', None),
  ('drop', 5, None, 'prompt_fills_window', None),
  ('drop', 9, 4, 'prompt_too_long', None),
  ('keep_prompt_end', 9, None, '^abcd', ['efg$', 'h$']),
  ('keep_prompt_end', 8, None, '^bcd', ['efg$', 'h$']),
  ('keep_prompt_end', 6, None, '^d', ['efg$', 'h$']),
  ('keep_prompt_end', 5, None, 'd', ['efg$', 'h$']),
  ('keep_prompt_end', 4, None, 'completion_fills_window', None),
  ('keep_prompt_end', 9, 3, '^cd', ['efg$', 'h$']),
  ('keep_completion_start', 8, None, '^abcd', ['efg', 'h$']),
  ('keep_completion_start', 6, None, '^abcd', ['e', 'h']),
  ('keep_completion_start', 5, None, 'prompt_fills_window', None),
  ('keep_completion_start', 5, 3, '^cd', ['ef', 'h$']),
]


@pytest.mark.parametrize(
  ('policy', 'window', 'prompt_window', 'prompt', 'sides'), LONG
)
def test_truncation(policy, window, prompt_window, prompt, sides):
  options = {
    'max_length': window,
    'truncation': policy,
    'prompt_max_length': prompt_window,
  }
  record = pair('abcd', 'efg', 'h')
  if sides is None:
    assert dropped(record, **options) == {prompt: 1}
    return
  encoded, counts = run(record, **options)
  marks = {'^': 256, '$': 257}
  assert ids(encoded[0]) == (
    [marks.get(c, ord(c)) for c in prompt],
    [[marks.get(c, ord(c)) for c in side] for side in sides],
  )
  assert counts.counters['truncated_prompts'] == (prompt != '^abcd')
  cut = sum(not side.endswith('$') for side in sides)
  assert counts.counters['truncated_completions'] == cut


def test_an_unknown_policy_is_refused():
  with pytest.raises(InputError, match="did you mean 'keep_prompt_end'"):
    run(pair(), truncation='keep_prompts_end')


def test_sides_that_become_equal_by_truncation_are_dropped():
  options = {'max_length': 4, 'truncation': 'keep_completion_start'}
  assert dropped(pair('a', 'xyz', 'xyw'), **options) == {'identical_sides': 1}


def test_an_empty_answer_of_a_chat_is_empty_whatever_the_template_adds(
  tmp_path,
):
  tokens = toy.load(
    tmp_path, toy.byte_level(), template=toy.CHATML, eos_token='<|im_end|>'
  )
  for text in ('', ' \n'):
    record = chat('a', 'b', text)
    assert dropped(record, tokens=tokens) == {'empty_completion': 1}
