"""Published chat templates render here as they do in transformers.

  PYTHONPATH=. python tests/data/text/templates_in_transformers.py PYTHON FILES

PYTHON is the interpreter of an environment with transformers (no torch): this
project needs neither. FILES are Jinja templates. Each renders 30 conversations,
with and without the prompt of an answer; both give the same text, or both
refuse. Prints how many of each there were and those that differ; exit code 1 if
there are any.
"""

import datetime
import itertools
import json
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

from dpo_jax.data.text import templates
from dpo_jax.types import InputError

_SPECIAL = {'bos_token': '<s>', 'eos_token': '</s>', 'unk_token': '<unk>'}
_SPECIAL |= {'pad_token': '<pad>'}
# Runs in the other environment; imports nothing of this project.
_THEIRS = """
import json, sys, tokenizers, transformers
given = json.load(open(sys.argv[1]))
tokenizer = transformers.PreTrainedTokenizerFast(
  tokenizer_object=tokenizers.Tokenizer(tokenizers.models.BPE()),
  **given['special'])
out = []
for source in given['sources']:
  for chat, prompt in given['chats']:
    try:
      out.append(tokenizer.apply_chat_template(
        chat['messages'], tools=chat['tools'], chat_template=source,
        add_generation_prompt=prompt, tokenize=False))
    except Exception:
      out.append(None)
print(json.dumps(out))
"""
_TOOLS = [
  {
    'type': 'function',
    'function': {
      'name': 'day',
      'description': 'Tells the day.',
      'parameters': {
        'type': 'object',
        'properties': {'at': {'type': 'string', 'description': 'where'}},
        'required': ['at'],
      },
    },
  }
]
_CALL = {'type': 'function', 'id': 'abcdef123'}
_CALL |= {'function': {'name': 'day', 'arguments': {'at': 'Oslo'}}}
_TEXTS = ('Which day is it?', '  Größe: 5 €\n\n```py\nx = {}\n```  ', '')


def conversations() -> Iterator[dict[str, Any]]:
  """Yields 30 conversations: system, turns, tools, reasoning, odd texts."""
  answers = {'plain': {}, 'reasoning': {'reasoning_content': 'Hm. So.'}}
  for system, turns, text in itertools.product((0, 1), (1, 2, 3), _TEXTS):
    turn = _turn(text, f'It is {text or "late"}.')
    yield {'messages': _system(system) + turn * turns, 'tools': None}
  for system, kind in itertools.product((0, 1), answers):
    turn = _turn('Why?', 'Because.', **answers[kind])
    yield {'messages': _system(system) + turn * 2, 'tools': _TOOLS}
  for system, tools, content in itertools.product(
    (0, 1), (None, _TOOLS), (None, '')
  ):
    called = _turn('And in Oslo?', content, tool_calls=[_CALL])
    result = {'role': 'tool', 'name': 'day', 'content': 'Monday'}
    result |= {'tool_call_id': _CALL['id']}
    said = {'role': 'assistant', 'content': 'Monday.'}
    messages = [*_system(system), *called, result, said]
    yield {'messages': messages, 'tools': tools}


def _system(is_there: int) -> list[dict[str, Any]]:
  return [{'role': 'system', 'content': 'Be brief.'}] * is_there


def _turn(text: str, answer: str | None, **more: Any) -> list[dict[str, Any]]:
  user = {'role': 'user', 'content': text}
  return [user, {'role': 'assistant', 'content': answer} | more]


def _ours(sources: list[str], chats: list) -> list[str | None]:
  """The texts that this project renders; None = refused."""
  today = datetime.date.today().isoformat()
  out = []
  for source in sources:
    try:
      template = templates.ChatTemplate(
        source, special_tokens=_SPECIAL, date=today
      )
    except InputError:
      out += [None] * len(chats)
      continue
    for chat, prompt in chats:
      try:
        rendered = template.render(
          chat['messages'], tools=chat['tools'], add_generation_prompt=prompt
        )
        out.append(''.join(piece.text for piece in rendered.pieces))
      except InputError:
        out.append(None)
  return out


def _theirs(python: str, given: dict[str, Any]) -> list[str | None]:
  """The texts that transformers renders; None = refused."""
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / 'given.json'
    path.write_text(json.dumps(given))
    done = subprocess.run(
      [python, '-c', _THEIRS, str(path)],
      check=True,
      stdout=subprocess.PIPE,
      text=True,
    )
  return json.loads(done.stdout)


def main(python: str, names: list[str]) -> int:
  """Compares all templates; returns the exit code."""
  texts = {pathlib.Path(n).read_text(): n for n in names}  # each one once
  chats = list(itertools.product(conversations(), (False, True)))
  given = {'sources': list(texts), 'chats': chats, 'special': _SPECIAL}
  both = zip(_ours(given['sources'], chats), _theirs(python, given))
  counts, bad = {'equal': 0, 'refused by both': 0, 'different': 0}, []
  for index, (own, other) in enumerate(both):
    name = texts[given['sources'][index // len(chats)]]
    kind = 'different' if own != other else 'equal'
    counts['refused by both' if own is other is None else kind] += 1
    if own != other:
      bad.append(f'{name} {index % len(chats)}: {own!r:.300} {other!r:.300}')
  print(len(texts), 'templates:', *(f'{n:,} {k},' for k, n in counts.items()))
  print('\n'.join(bad[:20]))
  return int(bool(bad))


if __name__ == '__main__':
  sys.exit(main(sys.argv[1], sys.argv[2:]))
