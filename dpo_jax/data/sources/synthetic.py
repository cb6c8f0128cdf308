"""seed -> records: the embedded data set, preferences with a planted rule.

Comes in: a number of prompts and a seed. Goes out: `types.PreferenceRecord`s
of ASCII text. Reads no file and knows no tokenizer.

A prompt lists three things. An answer names one of them, in one of eight
manners:

    Pick: owl, fig or pen.      ->      ' Gladly! The owl.'

The planted rule: reward = 2 if the manner is polite + 1 if the thing is the
first in the list. Half of the pairs are strong: the same thing in a polite and
a rude manner, margin 2. The other half are weak: the same manner, the first
thing against another one, margin 1. Demonstrations draw manner and thing
uniformly, so that a model trained on them writes such answers and is near
chance on the pairs. The rule is easy: a decoder of two layers, 64 wide, learns
it from bytes and applies it to unseen prompts (256 held-out pairs: accuracy
0.49 after 300 updates of SFT, 0.99 after 100 more of DPO, 32 prompts per
update). Prompt and answer have at most 44 bytes together.
"""

import itertools

import numpy as np

from dpo_jax.types import Comparison, PreferenceRecord

POLITE = ('Gladly!', 'Sure!', 'Of course!', 'Yes, please!')
RUDE = ('Whatever.', 'Ugh.', 'If I must.', 'No, thanks.')
# Part of the data's fingerprint, and so of the token cache's key: raise it
# with any change to the records.
VERSION = 1

THINGS = (
  'ant bat cup dot egg fig gum hat ink jar key leg mug nut owl pen '
  'rug sun tin urn van wig yak zip arm bow cow fan gem ham jam net'
).split()


def make_records(num_prompts: int, seed: int) -> list[PreferenceRecord]:
  """Makes pairs that follow the rule, each with a prompt of its own.

  Args:
    num_prompts: at most 29,760, the ordered triples of the THINGS.
    seed: the same seed gives the same records.

  Returns:
    Records of two completions in random order. Scores are their rewards, and
    the margin of the one comparison is the difference of the rewards.
  """
  rng = np.random.default_rng(seed)
  records = []
  for i, things in enumerate(_draw_prompts(num_prompts, rng)):
    polite, rude = _any(POLITE, rng), _any(RUDE, rng)
    first, other = things[0], _any(things[1:], rng)
    if rng.random() < 0.5:
      thing = _any((first, other), rng)
      pair = [(polite, thing), (rude, thing)]
    else:
      manner = _any((polite, rude), rng)
      pair = [(manner, first), (manner, other)]
    winner = int(rng.integers(2))
    answers = pair if winner == 0 else pair[::-1]
    scores = tuple(reward(things, *answer) for answer in answers)
    margin = scores[winner] - scores[1 - winner]
    records.append(
      _record(i, things, answers)._replace(
        comparisons=(Comparison(winner, 1 - winner, margin=margin),),
        scores=scores,
      )
    )
  return records


def make_demonstrations(num_prompts: int, seed: int) -> list[PreferenceRecord]:
  """Makes prompts with one answer each, in any manner, for SFT."""
  rng = np.random.default_rng(seed)
  records = []
  for i, things in enumerate(_draw_prompts(num_prompts, rng)):
    answer = _any(POLITE + RUDE, rng), _any(things, rng)
    records.append(
      _record(i, things, [answer])._replace(comparisons=(Comparison(0, 0),))
    )
  return records


def reward(things: tuple[str, ...], manner: str, thing: str) -> float:
  """Returns 2 for a polite manner + 1 for the first thing."""
  return 2.0 * (manner in POLITE) + 1.0 * (thing == things[0])


def _any(choices: tuple[str, ...], rng: np.random.Generator) -> str:
  """One of the choices, uniformly."""
  return choices[rng.integers(len(choices))]


def _draw_prompts(
  num_prompts: int, rng: np.random.Generator
) -> list[tuple[str, ...]]:
  """Distinct triples of things, in random order."""
  triples = list(itertools.permutations(THINGS, 3))
  if not 0 < num_prompts <= len(triples):
    raise ValueError(f'num_prompts: {num_prompts} is not in 1..{len(triples)}')
  return [triples[i] for i in rng.permutation(len(triples))[:num_prompts]]


def _record(
  i: int, things: tuple[str, ...], answers: list[tuple[str, str]]
) -> PreferenceRecord:
  """The record of one prompt and its answers, without comparisons."""
  return PreferenceRecord(
    prompt='Pick: {}, {} or {}.'.format(*things),
    completions=tuple(f' {manner} The {thing}.' for manner, thing in answers),
    where=f'synthetic[{i}]',
  )


# The embedded data sets by source name: no file, no download.
EMBEDDED = {
  'synthetic': make_records,
  'synthetic_demonstrations': make_demonstrations,
}
