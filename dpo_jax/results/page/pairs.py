"""Runs -> lists of held-out pairs that are worth reading, with their texts.

Comes in: the rows of a table, with what each run saved per comparison. Goes
out: plain values: the worst pairs of each run, the pairs that all runs of a row
(or all runs) put in the wrong order, their texts as far as they are at hand and
as far as there is room. Judges no pair: a label that every seed contradicts is
a candidate, no more.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dpo_jax.results import cells, collect, tables
from dpo_jax.results.page import markup, texts

MOST = 200  # pairs of a list
WORST, MISLABELLED = 'worst', 'mislabelled'
_FULL = 'the page is full'


class _Scores(NamedTuple):
  """What one run saved of its pairs: [P] each."""

  keys: list[tuple[str, int]]  # (uid, number in its record)
  prompts: list[str]
  margins: np.ndarray  # reward of chosen minus that of rejected
  rewards: np.ndarray  # [P, 2]
  tokens: list[tuple[int, int]]  # trained ones, of chosen and rejected


class Lists(NamedTuple):
  """The lists, before their texts."""

  lists: list[dict[str, Any]]  # kind, scope, head, items, of, note
  # key -> (run, prompt_id, trained tokens of both sides) of all that have it
  pairs: dict[tuple[str, int], list[tuple[collect.Run, str, tuple[int, int]]]]
  absent: list[str]  # lines: which runs have no list, and why


def make_lists(table: cells.Table, names: Mapping[Any, str]) -> Lists:
  """Ranks the pairs of every run, row and of all runs.

  Args:
    table: of the report.
    names: what the page calls a run, by its path.
  """
  scores, absent, lists, pairs = {}, [], [], {}
  runs = [run for row in table.rows for run in row.group.runs]
  for run in runs:
    found = _scores(run)
    if isinstance(found, str):
      absent.append(f'{names[run.path]}: {found}')
      continue
    scores[run.path] = found
    lists.append(_worst(found, names[run.path]))
  scopes = [
    (f'all seeds of {tables.row_name(table, index)}', row.group.runs)
    for index, row in enumerate(table.rows)
  ]
  if len(table.rows) > 1:
    scopes.insert(0, ('all runs', runs))
  for scope, members in scopes:
    own = [scores[run.path] for run in members if run.path in scores]
    if len(own) > 1:
      lists.append(_mislabelled(own, scope))
    elif scopes[0][0] == scope:
      absent.append(
        f'{scope}: pairs that all runs get wrong need two runs or more'
      )
  for run in runs:
    if run.path in scores:
      own = scores[run.path]
      for key, *rest in zip(own.keys, own.prompts, own.tokens):
        pairs.setdefault(key, []).append((run, *rest))
  return Lists(lists, pairs, absent)


def _scores(run: collect.Run) -> _Scores | str:
  """What a run saved of its pairs, or why it saved none."""
  examples = run.examples
  if examples is None:
    return 'no per_example file of its last evaluation'
  arrays = examples.arrays
  if 'desirable' in arrays:
    return 'labelled answers, no pairs'
  fields = 'reward_chosen', 'reward_rejected'
  if not all(field in arrays for field in fields):
    return 'no rewards were saved (SFT, or an older version)'
  rewards = np.stack([arrays[field] for field in fields], 1)
  counts = [arrays.get(f'{side}_tokens') for side in ('chosen', 'rejected')]
  if any(count is None for count in counts):
    return 'no numbers of tokens were saved (an older version)'
  return _Scores(
    list(texts.numbered(examples.uid)),
    [texts.as_text(prompt) for prompt in examples.prompt.tolist()],
    rewards[:, 0] - rewards[:, 1],
    rewards,
    [(int(a), int(b)) for a, b in zip(*counts)],
  )


def _worst(scores: _Scores, name: str) -> dict[str, Any]:
  """The pairs of lowest margin of a run."""
  order = np.argsort(scores.margins, kind='stable')[:MOST]
  return {
    'kind': WORST,
    'scope': name,
    'head': ['margin', 'reward, chosen', 'reward, rejected'],
    'items': [
      [scores.keys[i], _round(scores.margins[i], *scores.rewards[i])]
      for i in order.tolist()
    ],
    'of': f'{len(scores.keys):,} held-out pairs',
    'note': 'The lowest margins (reward of chosen minus that of rejected).',
  }


def _mislabelled(members: Sequence[_Scores], scope: str) -> dict[str, Any]:
  """Pairs with a negative margin in all of these runs, the lowest mean first.

  Margins are in units of each run's own root mean square, so that runs of
  different losses and betas count alike.
  """
  scaled = []
  for one in members:
    scale = float(np.sqrt(np.mean(one.margins**2))) or 1.0
    scaled.append(dict(zip(one.keys, (one.margins / scale).tolist())))
  shared = [key for key in scaled[0] if all(key in one for one in scaled)]
  rows = [(key, [one[key] for one in scaled]) for key in shared]
  wrong = [(key, values) for key, values in rows if max(values) < 0]
  wrong.sort(key=lambda row: sum(row[1]))
  return {
    'kind': MISLABELLED,
    'scope': scope,
    'head': ['mean margin / its rms', 'lowest', 'highest'],
    'items': [
      [key, _round(sum(values) / len(values), min(values), max(values))]
      for key, values in wrong[:MOST]
    ],
    'of': f'{len(wrong):,} pairs with a negative margin in all '
    f'{len(members)} runs, out of {len(shared):,} held-out pairs',
    'note': "Margins in units of each run's root mean square, so that losses "
    'and betas count alike. A label that every run contradicts may be wrong; '
    'it may also be right and hard.',
  }


def _round(*values: float) -> list[float | None]:
  """Numbers for JSON: six digits; None = not finite."""
  return [float(f'{v:.6g}') if np.isfinite(v) else None for v in values]


def as_json(
  lists: Lists, finder: texts.Finder, room: int
) -> tuple[dict[str, Any], list[str]]:
  """The lists with the texts of their pairs, as plain values.

  Args:
    lists: from `make_lists`.
    finder: of the texts.
    room: bytes for all of it. Lists take half of it at most; the first pairs of
      every list get their texts first.

  Returns:
    {'pairs': [...], 'lists': [...], 'reasons': [...]}, and lines that say what
    is absent.
  """
  most = MOST
  while True:
    made = _without_texts(lists, most)
    left = room - len(markup.json_block('', made).text)
    if left > room // 2 or not most:
      break
    most //= 2
  counts = {_FULL: 0}
  for entry in made['pairs']:
    key = entry['uid'], entry['number']
    found = _find(key, lists.pairs[key], finder)
    if not isinstance(found, str):
      given = {name: list(map(list, v)) for name, v in found._asdict().items()}
      size = len(markup.json_block('', given).text)
      if size <= left:
        left -= size
        del entry['why']
        entry |= given
        continue
      found = _FULL
    counts[found] = counts.get(found, 0) + 1
    entry['why'] = list(counts).index(found)
  for entry in made['pairs']:
    entry['uid'] = markup.visible(entry['uid'])
  made['reasons'] = list(counts)
  lines = [
    f'texts of {count:,} of {len(made["pairs"]):,} pairs are absent: {why}'
    for why, count in counts.items()
    if count
  ]
  return made, [*lists.absent, *lines]


def _without_texts(lists: Lists, most: int) -> dict[str, Any]:
  """The lists with at most so many pairs each, and what is said of a pair."""
  kept = [{**one, 'items': one['items'][:most]} for one in lists.lists]
  order = _by_rank(kept)
  number = {key: index for index, key in enumerate(order)}
  for one in kept:
    one['items'] = [[number[key], *rest] for key, rest in one['items']]
  entries = []
  for key in order:
    _, prompt, tokens = lists.pairs[key][0]
    entries.append(
      {
        'uid': key[0],
        'number': key[1],
        'prompt_id': markup.visible(prompt),
        'tokens': list(tokens),
        'why': 0,
      }
    )
  return {'pairs': entries, 'lists': kept, 'reasons': [_FULL]}


def _find(key, candidates, finder: texts.Finder) -> texts.Pair | str:
  """The texts of a pair from the first run that has them, or why not."""
  why = ''
  for run, _, tokens in candidates:
    source = finder.source(run)
    pair = source.pair(*key, tokens)
    if pair is not None:
      return pair
    why = why or source.problem
  return why or 'their records are not in the cache'


def _by_rank(lists: Sequence[Mapping[str, Any]]) -> list[tuple[str, int]]:
  """The pairs of all lists, the first of every list before any second."""
  columns = [[key for key, _ in one['items']] for one in lists]
  ranks = itertools.zip_longest(*columns)
  return list(
    dict.fromkeys(key for rank in ranks for key in rank if key is not None)
  )
