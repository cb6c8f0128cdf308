"""Cases of conversations: what of a chat becomes tokens, and which are trained.

Each case writes its own file and encodes it as a run does. The words are
`prompt > completion | completion`, with the trained part in [brackets].
"""

import functools
import itertools
import json
import pathlib
from typing import Any

import toy_tokenizers as toy
from cases.case import Case

from dpo_jax import config as config_lib
from dpo_jax.data.sources import source
from dpo_jax.data.text import encode, encoders
from dpo_jax.run import datasets
from dpo_jax.types import InputError

QUICKSTART = (
  f'{pathlib.Path(__file__).resolve().parents[2]}/experiments/quickstart.py'
  ':stage=dpo,runlocal'
)
BYTE = encoders.ByteTokenizer()
TAIL = "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
# Writes a role, the content, tool calls, and EOS after each turn.
TEMPLATE = (
  "{%- for m in messages %}{{ '<' ~ m.role ~ '>' ~ (m.content or '') }}"
  '{%- if m.tool_calls %}{{ m.tool_calls | tojson }}{% endif %}'
  '{{- eos_token }}{% endfor %}{{ tools | tojson if tools }}' + TAIL
)
NO_EOS = TEMPLATE.replace('{{- eos_token }}', '')
DATED = "{{- strftime_now('%d %b %Y') }}" + TEMPLATE
U, A, B = (
  {'role': role, 'content': text}
  for role, text in (('user', 'Hi'), ('assistant', 'Yes'), ('assistant', 'No'))
)
SURE = {'role': 'assistant', 'content': 'Sure: '}
MORE = {'role': 'user', 'content': 'more?'}
CHAT = {'prompt': [U], 'chosen': [A], 'rejected': [B]}
HH = '\n\nHuman: Hi\n\nAssistant:'
BYE = '\n\nHuman: Bye\n\nAssistant:'
BAD = 'x\ud83d'
REFUSED = 'refused: data.allow_control_tokens'
ON_HELD_OUT = '8 held-out records are training records, 0 more share a prompt'


def _write(folder: pathlib.Path, rows) -> str:
  path = folder / 'rows.jsonl'
  rows = [rows] if isinstance(rows, dict) else rows
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return str(path)


def _encode(folder, rows, tokens, **options):
  """The encoded records and ledger of a file, as a run makes them."""
  options = {'max_length': 10**6, 'chat_template': TEMPLATE} | options
  records = source.open_source(_write(folder, rows)).records()
  return encode.encode_all(records, tokens, encode.EncodeOptions(**options))


def _spell(tokens, ids) -> str:
  text = tokens.decode(ids, skip_special=False)
  return text.removeprefix('<|bos|>').replace('\n', '/')


def _bracketed(tokens, ids, mask) -> str:
  groups = itertools.groupby(range(len(ids)), key=lambda i: bool(mask[i]))
  texts = ((t, _spell(tokens, [ids[i] for i in run])) for t, run in groups)
  return ''.join(f'[{text}]' if t else text for t, text in texts)


def _words(folder: pathlib.Path, rows: Any = None, **options: Any) -> str:
  """What becomes of a file of rows."""
  try:
    encoded, ledger = _encode(folder, rows, BYTE, **options)
  except InputError as error:
    return f'refused: {str(error).partition("rows.jsonl:")[2].split(";")[0]}'
  if ledger.dropped:
    return f'dropped: {", ".join(ledger.dropped)}'
  texts = []
  for record in encoded:
    masks = record.trained or [[True] * len(c) for c in record.completions]
    sides = map(functools.partial(_bracketed, BYTE), record.completions, masks)
    texts.append(f'{_spell(BYTE, record.prompt)} > {" | ".join(sides)}')
  return '; '.join(texts)


def _rendered(folder: pathlib.Path, row: dict, allow: bool = False) -> str:
  """What becomes of texts, with a tokenizer that has ChatML's tokens."""
  tokens = toy.load(folder / 'tokens', toy.byte_level(), eos_token='<|im_end|>')
  try:
    (record,), _ = _encode(folder, row, tokens, allow_control_tokens=allow)
  except InputError as error:
    name = 'data.allow_control_tokens'
    return f'refused: {name if name in str(error) else error}'
  return f'{len(record.completions[0])} answer tokens'


def _count(folder: pathlib.Path, row: dict, counter: str) -> str:
  _, ledger = _encode(folder, row, BYTE)
  return f'counted: {ledger.counters[counter]}'


def _config(folder: pathlib.Path, **values: str) -> Any:
  (folder / 'a.jinja').write_text(values.pop('template', TEMPLATE))
  overrides = [(k.replace('__', '.'), v) for k, v in values.items()]
  overrides.append(('data.chat_template', f'{folder}/a.jinja'))
  return config_lib.load(QUICKSTART, overrides)


def _sampled(folder: pathlib.Path, row: dict) -> str:
  config = _config(folder, sample__prompts=_write(folder, row))
  (ids,) = datasets.read_prompts(config, BYTE)
  return _spell(BYTE, ids)


def _dated(folder: pathlib.Path, *days: str) -> str:
  """The beginning of the first prompt, of a run per day."""
  question = [[U | {'content': f'{i:03}'}] for i in range(60)]
  path = _write(folder, [CHAT | {'prompt': turns} for turns in question])
  begins = []
  for day in days:
    more = {'data__template_date': day} if day else {}
    config = _config(folder, data__train=path, template=DATED, **more)
    data = datasets.read(config, BYTE, folder / 'cache', lambda line: None)
    begins.append(_spell(BYTE, data.train.store[0].prompt)[:11])
  return ', '.join(begins)


def _held_out(folder: pathlib.Path, change: dict) -> str:
  """Training on 40 rows, 8 of them (changed) held out."""
  sides = {'chosen': 'a', 'rejected': 'b'}
  rows = [{'prompt': f'{i}', **sides} for i in range(40)]
  train = _write(folder, rows)
  (folder / 'held_out').mkdir()
  held_out = _write(folder / 'held_out', [row | change for row in rows[-8:]])
  config = _config(folder, data__train=train, data__eval=held_out)
  data = datasets.read(config, BYTE, folder / 'cache', lambda line: None)
  counts = data.ledger['eval']
  return (
    f'{counts["trained_on"]} held-out records are training records, '
    f'{counts["trained_prompts"]} more share a prompt'
  )


def _case(kind, case, right, function, *args, **options) -> Case:
  return Case(kind, case, right, lambda d: function(d, *args, **options))


def _call(**function: Any) -> list[dict]:
  return [B | {'tool_calls': [{'type': 'function', 'function': function}]}]


def _nested(depth: int) -> Any:
  value: Any = 'x'
  for _ in range(depth):
    value = {'k': value}
  return value


_CHATML = '<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n'
RENDERED = [
  _case('text rendered before', name, right, _rendered, row, allow)
  for name, right, allow, row in (
    ('ChatML on both sides', REFUSED, False, (_CHATML, 'Yes!<|im_end|>')),
    ('BOS before the prompt', REFUSED, False, ('<s>Hi', 'Yes!')),
    ('EOS after the answer', REFUSED, False, ('Hi', 'Yes!<|im_end|>\n')),
    ('ChatML, allowed', '5 answer tokens', True, (_CHATML, 'Yes!<|im_end|>')),
    ('in the middle', '17 answer tokens', False, ('Hi', 'a <|im_end|> b!!')),
  )
  for row in [{'prompt': row[0], 'chosen': row[1], 'rejected': 'No'}]
]
DIALOGUES = [
  _case('HH dialogues that differ early', name, right, _words, row)
  for name, right, row in (
    (
      'the last turn differs',
      '//Human: Hi//Assistant: A//Human: Bye//Assistant: > [ B<|eos|>] | '
      '[ C<|eos|>]',
      {'chosen': f'{HH} A{BYE} B', 'rejected': f'{HH} A{BYE} C'},
    ),
    (
      'the first turn differs',
      '//Human: Hi//Assistant: > [ A]//Human: Bye//Assistant:[ C<|eos|>] | '
      '[ B]//Human: Bye//Assistant:[ C<|eos|>]',
      {'chosen': f'{HH} A{BYE} C', 'rejected': f'{HH} B{BYE} C'},
    ),
    (
      'one side goes on',
      '//Human: Hi//Assistant: > [ A<|eos|>] | '
      '[ A]//Human: Bye//Assistant:[ B<|eos|>]',
      {'chosen': f'{HH} A', 'rejected': f'{HH} A{BYE} B'},
    ),
    (
      'prompt given, three turns',
      '//Human: Hi//Assistant: > [ A]//Human: Bye//Assistant:[ B]//Human: Bye'
      '//Assistant:[ C<|eos|>] | [ D<|eos|>]',
      {'prompt': HH, 'chosen': f' A{BYE} B{BYE} C', 'rejected': ' D'},
    ),
    (
      'the human speaks last',
      '//Human: Hi//Assistant: > [ A]//Human: Bye | [ D<|eos|>]',
      {'prompt': HH, 'chosen': ' A\n\nHuman: Bye', 'rejected': ' D'},
    ),
    (
      'a labelled answer',
      '//Human: Hi//Assistant: > [ A]//Human: Bye//Assistant:[ B<|eos|>]',
      {'prompt': HH, 'completion': f' A{BYE} B', 'label': True},
    ),
  )
]
IDENTICAL = [
  _case(
    'sides whose trained tokens are equal',
    name,
    'dropped: identical_sides',
    _words,
    row,
    chat_template=template,
  )
  for name, template, row in (
    (
      "one side goes on with a user's turn",
      TEMPLATE,
      {'chosen': [U, A], 'rejected': [U, A, MORE]},
    ),
    (
      'the same, and the template writes no EOS',
      NO_EOS,
      {'chosen': [U, A, MORE], 'rejected': [U, A]},
    ),
    (
      "only the user's turns differ",
      TEMPLATE,
      {'prompt': [U], 'chosen': [A, MORE, B], 'rejected': [A, U, B]},
    ),
    (
      'HH: one side goes on',
      TEMPLATE,
      {'prompt': HH, 'chosen': ' A', 'rejected': ' A\n\nHuman: Bye'},
    ),
  )
]
_PREFILLED = '<user>Hi<|eos|><assistant>Sure: > [Yes<|eos|>]'.replace(
  ': >', ':  >'
)
PREFILLS = [
  _case('prefilled answers', name, right, _words, {'prompt': [U, SURE]} | row)
  for name, right, row in (
    ('pairs', f'{_PREFILLED} | [No<|eos|>]', {'chosen': [A], 'rejected': [B]}),
    (
      'ranked answers',
      f'{_PREFILLED} | [No<|eos|>]',
      {'completions': [[A], [B]], 'scores': [1, 0]},
    ),
    ('a labelled answer', _PREFILLED, {'completion': [A], 'label': True}),
    (
      'several turns after it',
      '<user>Hi<|eos|><assistant>Sure:  > [Yes<|eos|>]<user>more?<|eos|>'
      '<assistant>[No<|eos|>] | [No<|eos|>]',
      {'chosen': [A, MORE, B], 'rejected': [B]},
    ),
  )
]
SAMPLING = [
  _case('prompts to sample', name, right, _sampled, row)
  for name, right, row in (
    ('an SFT row', '<user>Hi<|eos|><assistant>', {'messages': [U, A]}),
    (
      'an SFT row of two answers',
      '<user>Hi<|eos|><assistant>Yes<|eos|><user>more?<|eos|><assistant>',
      {'messages': [U, A, MORE, B]},
    ),
    ('a question alone', '<user>Hi<|eos|><assistant>', {'messages': [U]}),
    (
      'a prefilled prompt',
      '<user>Hi<|eos|><assistant>Sure: ',
      {'prompt': [U, SURE]},
    ),
  )
]
_LONE = "has a lone surrogate: '\\ud83d'"
_PLACE = 'refused: 1: completion[0].tool_calls[0].function'
UNWRITABLE = [
  _case('lone surrogates and deep values', name, right, _words, CHAT | row)
  for name, right, row in (
    (
      'value of an argument',
      f'{_PLACE}.arguments.q {_LONE}',
      {'chosen': _call(name='f', arguments={'q': BAD})},
    ),
    (
      'key of an argument',
      f'{_PLACE}.arguments.x\\ud83d {_LONE}',
      {'chosen': _call(name='f', arguments={BAD: 1})},
    ),
    (
      'name of a call',
      f'{_PLACE}.name {_LONE}',
      {'rejected': _call(name=BAD)},
    ),
    ('tools', f'refused: 1: tools[0].name {_LONE}', {'tools': [{'name': BAD}]}),
    (
      'another key of a message',
      f'refused: 1: prompt[0].name {_LONE}',
      {'prompt': [U | {'name': BAD}]},
    ),
    (
      '600 objects in each other',
      f'{_PLACE}.arguments{".k" * 7}... is nested deeper than 64 levels',
      {'chosen': _call(name='f', arguments=_nested(600))},
    ),
    (
      '100 objects in each other, in tools',
      f'refused: 1: tools[0]{".k" * 26}... is nested deeper than 64 levels',
      {'tools': [_nested(100)]},
    ),
  )
]
DATES = [
  _case('a template that writes the date', name, right, _dated, *days)
  for name, right, days in (
    ('no date given', '26 Jul 2024', ('',)),
    (
      'two runs, one token cache',
      '01 Feb 2023, 29 Feb 2024',
      ('2023-02-01', '2024-02-29'),
    ),
    ('the same day twice', '01 Feb 2023, 01 Feb 2023', ('2023-02-01',) * 2),
  )
]
REASONING = [
  _case(
    'reasoning that a template drops',
    name,
    'counted: 1',
    _count,
    row,
    'reasoning_not_written',
  )
  for name, row in (
    *(
      (f'{key} of an answer', CHAT | {'chosen': [A | {key: 'hm'}]})
      for key in ('reasoning_content', 'reasoning', 'thinking')
    ),
    (
      'in the history',
      CHAT | {'prompt': [U, A | {'reasoning_content': 'hm'}, MORE]},
    ),
  )
]
HELD_OUT = [
  _case('held-out rows that are trained on', name, right, _held_out, change)
  for name, right, change in (
    ('the same rows', ON_HELD_OUT, {}),
    ('sides swapped', ON_HELD_OUT, {'chosen': 'b', 'rejected': 'a'}),
    ('another weight', ON_HELD_OUT, {'weight': 2}),
    (
      'another answer',
      '0 held-out records are training records, 8 more share a prompt',
      {'chosen': 'c'},
    ),
  )
]
CASES = [
  *RENDERED,
  *DIALOGUES,
  *IDENTICAL,
  *PREFILLS,
  *SAMPLING,
  *UNWRITABLE,
  *DATES,
  *REASONING,
  *HELD_OUT,
]
