"""Mutated tokenizer folders: a tokenizer that encodes, or one line of refusal.

  PYTHONPATH=.:tests/data/text python tests/data/text/mutated_tokenizers.py \
    [NUM] [SEED]

Each time one of the files is changed at one or two places, of its values or of
its text; the folder is loaded and encodes a text and a chat, in this process.
The script prints how often that worked and how often it was refused, and
whatever else happened.
"""

import collections
import json
import math
import pathlib
import random
import sys
import tempfile
import time
from typing import Any

import toy_records
import toy_tokenizers as toy

from dpo_jax.data.text import tokenizer
from dpo_jax.types import InputError

_VALUES: tuple[Any, ...] = (
  None, True, False, 0, -1, 7, 1e308, 10**9, 10**30, 2**63, '', 'x\ud83d',
  '\x00', '<|im_end|>', 'ByteLevel', 'TemplateProcessing', [], {}, [[]], [{}],
  {'content': 'x\ud83d'}, {'content': 7}, 'a' * 3000, [7], {'a': 7}, '[', '{{',
)  # fmt: skip
_KEYS = (
  'type', 'add_bos_token', 'bos_token', 'eos_token', 'chat_template', 'model',
  'additional_special_tokens', 'extra_special_tokens', 'post_processor', '',
  'eos_token_id', 'normalizer', 'pre_tokenizer', 'added_tokens', 'prefix',
)  # fmt: skip
# The last is no UTF-8 once it is written.
_TEXTS = (
  *('"', '{', ']', '\\ud800', '9' * 5000, '1e999', '', '[' * 2000),
  '\ud800',
)


def files(folder: pathlib.Path) -> dict[str, str]:
  """Returns the files of a sound tokenizer, by name."""
  made = toy.put_before(toy.byte_level(merges=[('a', 'b')]), '<s>')
  toy.save(folder, made, toy.CHATML, eos_token='</s>', bos_token='<s>')
  more = {
    'config.json': {'eos_token_id': 257, 'vocab_size': 261},
    'generation_config.json': {'eos_token_id': [257, 260]},
    'special_tokens_map.json': {'eos_token': {'content': '</s>'}},
  }
  sound = {path.name: path.read_text() for path in folder.glob('*.json')}
  return sound | {name: json.dumps(value) for name, value in more.items()}


def mutate(text: str, random_: random.Random) -> str:
  """Returns the text of a JSON file with one or two changes."""
  if random_.random() < 0.2:
    at = random_.randrange(len(text))
    skipped = random_.choice((0, 1, 50))
    return text[:at] + random_.choice(_TEXTS) + text[at + skipped :]
  value = json.loads(text)
  for _ in range(random_.choice((1, 1, 2))):
    _change(random_.choice(list(_holders(value))), random_)
  return json.dumps(value)


def _holders(value: Any) -> Any:
  """Yields the lists and objects of a value, itself most often."""
  if isinstance(value, dict | list):
    yield from [value] * 2
    # Few of the hundreds of tokens, so that the other parts change too.
    items = value.values() if isinstance(value, dict) else value
    for item in list(items)[:20]:
      yield from _holders(item)


def _change(holder: Any, random_: random.Random) -> None:
  value = json.loads(json.dumps(random_.choice(_VALUES)))
  if random_.random() < 0.1:
    for _ in range(random_.choice((70, 400))):
      value = [value]
  keys = list(holder) if isinstance(holder, dict) else range(len(holder))
  if isinstance(holder, dict) and (not keys or random_.random() < 0.3):
    holder[random_.choice(_KEYS)] = value
  elif keys and random_.random() < 0.2:
    del holder[random_.choice(keys)]
  elif keys:
    holder[random_.choice(keys)] = value


def run(
  num: int, seed: int, seconds: float = math.inf
) -> tuple[collections.Counter, list[str]]:
  """Returns (counts of outcomes, one line per mutation that went wrong).

  Args:
    num: mutations.
    seed: of the mutations.
    seconds: what loading a folder may take.
  """
  random_ = random.Random(seed)
  counts: collections.Counter = collections.Counter()
  failures = []
  records = toy_records.pair('hi', 'yes', 'no'), toy_records.chat('q', 'a', 'b')
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    sound = files(folder)
    for i in range(num):
      spoilt = random_.choice(sorted(sound))
      changed = sound | {spoilt: mutate(sound[spoilt], random_)}
      for file, text in changed.items():
        (folder / file).write_bytes(text.encode('utf-8', 'surrogatepass'))
      start = time.monotonic()
      try:
        tokens = tokenizer.load(name)
        encoded, _ = toy_records.run(*records, tokens=tokens)
        tokens.decode(encoded[0].prompt if encoded else [])
        outcome = 'loaded'
      except InputError as error:
        line = str(error)
        outcome = 'refused'
        if '; fix: ' not in line or '\n' in line:
          failures.append(f'{i}: {spoilt}: {line}')
      except BaseException as error:
        failures.append(f'{i}: {spoilt}: {type(error).__name__}: {error}')
        outcome = 'failed'
        if isinstance(error, KeyboardInterrupt):
          raise
      if time.monotonic() - start > seconds:
        failures.append(f'{i}: {spoilt}: too slow')
      counts[outcome] += 1
  return counts, failures


if __name__ == '__main__':
  numbers = [int(argument) for argument in sys.argv[1:]]
  outcomes, wrong = run(*numbers, *(2000, 0)[len(numbers) :], 5)
  print(dict(outcomes))
  print('\n'.join(wrong) or 'nothing else happened')
