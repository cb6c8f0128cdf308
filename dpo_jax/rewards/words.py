"""Rewards that count words and tokens of a completion.

Comes in: an Answer. Goes out: a number. Reads no file and no model.
"""

import re

from dpo_jax.rewards.registry import Answer, reward

# The words that labelled the pairs of stories_lexicon.
POSITIVE = frozenset(
  'happy happily smiled smile fun laughed laugh love loved loves joy good nice '
  'proud hug hugged kind best friend friends yummy pretty beautiful excited '
  'safe thank thanked'.split()
)
NEGATIVE = frozenset(
  'sad sadly cried cry crying angry scared afraid hurt mad bad fell lost broke '
  'broken sorry worried mean dark cold alone scary upset tired'.split()
)


@reward(label='Lexicon reward', unit='words')
def lexicon(answer: Answer) -> float:
  """Positive minus negative words of the completion, in lower case.

  A word is a longest run of the letters a to z. The prompt does not count, and
  a word that begins in the prompt counts by its letters in the completion.
  """
  words = re.findall('[a-z]+', answer.completion.lower())
  return sum(w in POSITIVE for w in words) - sum(w in NEGATIVE for w in words)


@reward(label='Length', unit='tokens')
def length(answer: Answer) -> float:
  """Tokens of the completion, the stop token included."""
  return answer.num_tokens


@reward(label='Length', unit='words')
def length_words(answer: Answer) -> float:
  """Words of the completion: runs of anything but white space."""
  return len(answer.completion.split())
