"""The embedded data set: preferences with a planted rule, made from a seed.

Comes in: how many and a seed. Goes out: `types.PreferenceRecord`s of ASCII
text. Reads nothing, and knows no tokeniser.

A prompt lists three things and an answer, in one of eight manners, names one:

    Pick: owl, fig or pen.      ->      ' Gladly! The owl.'

The planted rule: reward = 2 if the manner is polite + 1 if the thing is the
first one listed. Half the pairs are strong: the same thing in a polite and in a
rude manner, margin 2. Half are weak: one manner, the first thing and another,
margin 1. In demonstrations manner and thing are drawn evenly, so that a model
trained on them writes such answers and is near chance on the pairs. The rule
lies on the surface: a decoder of two layers, 64 wide, learns it from bytes and
holds it on prompts that it never saw (256 held-out pairs: accuracy 0.49 after
300 updates of SFT, 0.99 after 100 more of DPO, 32 prompts an update). Prompt
and answer are at most 44 bytes together.
"""

import itertools

import numpy as np

from dpo_jax.types import Comparison, PreferenceRecord

POLITE = ('Gladly!', 'Sure!', 'Of course!', 'Yes, please!')
RUDE = ('Whatever.', 'Ugh.', 'If I must.', 'No, thanks.')
VERSION = 1  # part of the data's fingerprint: raise it with any change

THINGS = (
  'ant bat cup dot egg fig gum hat ink jar key leg mug nut owl pen '
  'rug sun tin urn van wig yak zip arm bow cow fan gem ham jam net'
).split()
SOURCE = 'synthetic'


def make_records(num_prompts: int, seed: int) -> list[PreferenceRecord]:
  """Pairs that follow the rule, a different prompt each.

  Args:
    num_prompts: at most 29,760, all orders of three of the THINGS.
    seed: the same seed gives the same records.

  Returns:
    Records of two completions in random order, their rewards as scores, and
    one comparison whose margin is the difference of the rewards.
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
  """Prompts with one answer each, in any manner: what SFT is trained on."""
  rng = np.random.default_rng(seed)
  records = []
  for i, things in enumerate(_draw_prompts(num_prompts, rng)):
    answer = _any(POLITE + RUDE, rng), _any(things, rng)
    records.append(
      _record(i, things, [answer])._replace(comparisons=(Comparison(0, 0),))
    )
  return records


def reward(things: tuple[str, ...], manner: str, thing: str) -> float:
  """The planted rule: 2 for a polite manner + 1 for the first thing."""
  return 2.0 * (manner in POLITE) + 1.0 * (thing == things[0])


def _any(choices: tuple[str, ...], rng: np.random.Generator) -> str:
  """One of the choices, each as likely as the others."""
  return choices[rng.integers(len(choices))]


def _draw_prompts(
  num_prompts: int, rng: np.random.Generator
) -> list[tuple[str, ...]]:
  """Different triples of things, in random order."""
  triples = list(itertools.permutations(THINGS, 3))
  if not 0 < num_prompts <= len(triples):
    raise ValueError(f'num_prompts: {num_prompts} is not in 1..{len(triples)}')
  return [triples[i] for i in rng.permutation(len(triples))[:num_prompts]]


def _record(
  i: int, things: tuple[str, ...], answers: list[tuple[str, str]]
) -> PreferenceRecord:
  """The texts of one prompt and its answers."""
  return PreferenceRecord(
    prompt='Pick: {}, {} or {}.'.format(*things),
    completions=tuple(f' {manner} The {thing}.' for manner, thing in answers),
    where=f'{SOURCE}[{i}]',
    source=SOURCE,
  )


# The embedded data sets by source name: no file, no download.
EMBEDDED = {
  'synthetic': make_records,
  'synthetic_demonstrations': make_demonstrations,
}
