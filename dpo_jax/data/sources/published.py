"""published row -> row: the public sets by name, their files and columns.

Comes in: a source name `NAME[/CONFIG]:SPLIT`, or one row as published. Goes
out: the files of the split, their addresses, and the row in a format of
formats.py. Touches no disk and imports no TFDS: see tfds_sets.py.

A downloaded file keeps its published name and folders, inside the folder NAME
of the manual directory, e.g.
  MANUAL_DIR/hh_rlhf/harmless-base/train.jsonl.gz
"""

import os
import re
import shlex
from collections.abc import Callable
from typing import Any, NamedTuple

from dpo_jax import errors
from dpo_jax.data.sources import conversations
from dpo_jax.types import InputError

Row = dict[str, Any]


class PublishedSet(NamedTuple):
  """A public set: description, files and columns."""

  description: str
  homepage: str
  licence: str
  url: str  # a file is at url + its name
  configs: dict[str, dict[str, tuple[str, ...]]]  # config -> split -> files
  columns: dict[str, str]  # column -> 'text', 'number' or 'messages'
  # (row, split, where) -> the row with these columns; None: of another split
  convert: Callable[[Row, str, str], Row | None]


class Asked(NamedTuple):
  """The checked parts of a source name."""

  name: str
  config: str
  spec: str  # split with its slice, e.g. 'train[:100]' or 'train+test'
  splits: tuple[str, ...]  # names of the splits in `spec`


def parse_name(text: str, *, where: str) -> Asked:
  """Parses `NAME[/CONFIG]:SPLIT`; without CONFIG the set's first one is taken.

  Raises:
    InputError: a part is unknown; the fix names the nearest match.
  """
  path, _, spec = text.partition(':')
  name, _, config = path.partition('/')
  _check(name, SETS, 'data set', where)
  configs = SETS[name].configs
  config = config or next(iter(configs))
  _check(config, configs, f'config of {name}', where)
  # 'train[:100]+test' -> 'train', 'test'.
  splits = tuple(re.sub(r'\[.*', '', part) for part in spec.split('+'))
  for split in splits:
    _check(split, configs[config], f'split of {name}/{config}', where)
  return Asked(name, config, spec, splits)


def _check(name: str, allowed: dict, what: str, where: str) -> None:
  if name in allowed:
    return
  problem = f'unknown {what} {name!r}' if name else f'no {what} named'
  raise errors.refuse(
    where,
    problem,
    f'{errors.did_you_mean(name, allowed)}use {", ".join(allowed)} in '
    'tfds:NAME[/CONFIG]:SPLIT',
  )


def _hh_row(row: Row, split: str, where: str) -> Row:
  chosen, rejected = _strings(row, ('chosen', 'rejected'), where)
  parts = conversations.split_dialogue(chosen, rejected, where)
  return dict(zip(('prompt', 'chosen', 'rejected'), parts))


def _shp_row(row: Row, split: str, where: str) -> Row:
  """`labels` is 1 if answer A is preferred. Scores are Reddit's votes."""
  keys = ('history', 'human_ref_A', 'human_ref_B')
  history, *answers = _strings(row, keys, where)
  scores = [_field(row, key, where) for key in ('score_A', 'score_B')]
  best = 0 if _choice(row, 'labels', where) else 1
  return {
    'prompt': f'\n\nHuman: {history}\n\nAssistant:',
    'chosen': ' ' + answers[best],
    'rejected': ' ' + answers[1 - best],
    'score_chosen': scores[best],
    'score_rejected': scores[1 - best],
  }


def _ultrafeedback_row(row: Row, split: str, where: str) -> Row:
  keys = SETS['ultrafeedback_binarized'].columns
  return {key: _field(row, key, where) for key in keys}


def _tldr_row(row: Row, split: str, where: str) -> Row | None:
  """All splits share their files: the row's own `split` column decides."""
  if _strings(row, ('split',), where)[0] != split:
    return None
  info = _field(row, 'info', where)
  summaries = _field(row, 'summaries', where)
  if not isinstance(info, dict) or not isinstance(summaries, list):
    raise _unlike('info and summaries', where)
  if len(summaries) != 2 or not all(isinstance(s, dict) for s in summaries):
    raise _unlike('summaries', where)
  subreddit, title, post = _strings(info, ('subreddit', 'title', 'post'), where)
  answers = [_strings(s, ('text',), where)[0] for s in summaries]
  # Some of the published summaries begin with a space, others do not.
  answers = [' ' + a.removeprefix(' ') for a in answers]
  best = _choice(row, 'choice', where)
  return {
    'prompt': f'SUBREDDIT: r/{subreddit}\n\nTITLE: {title}\n\nPOST: {post}'
    '\n\nTL;DR:',
    'chosen': answers[best],
    'rejected': answers[1 - best],
  }


def _field(row: Row, key: str, where: str) -> Any:
  if row.get(key) is None:
    raise _unlike(key, where)
  return row[key]


def _strings(row: Row, keys: tuple[str, ...], where: str) -> list[str]:
  return [conversations.text(_field(row, k, where), k, where) for k in keys]


def _choice(row: Row, key: str, where: str) -> int:
  if _field(row, key, where) not in (0, 1):
    raise _unlike(key, where)
  return int(row[key])


def _unlike(key: str, where: str) -> InputError:
  return errors.refuse(
    where,
    f'{key!r} is missing or not as this set publishes it',
    'download the published file again',
  )


def _merged(configs: dict[str, dict[str, tuple[str, ...]]]):
  """The configs, after one more, 'all', that has the files of all of them."""
  joined: dict[str, tuple[str, ...]] = {}
  for splits in configs.values():
    for split, names in splits.items():
      joined[split] = joined.get(split, ()) + names
  return {'all': joined} | configs


_PAIR_COLUMNS = {'prompt': 'text', 'chosen': 'text', 'rejected': 'text'}
_SCORE_COLUMNS = {'score_chosen': 'number', 'score_rejected': 'number'}
_HUB = 'https://huggingface.co/datasets/'
_HH_CONFIGS = (
  'harmless-base',
  'helpful-base',
  'helpful-online',
  'helpful-rejection-sampled',
)
_SHP_CONFIGS = (
  'askacademia',
  'askanthropology',
  'askbaking',
  'askcarguys',
  'askculinary',
  'askdocs',
  'askengineers',
  'askhistorians',
  'askhr',
  'askphilosophy',
  'askphysics',
  'askscience',
  'asksciencefiction',
  'asksocialscience',
  'askvet',
  'changemyview',
  'explainlikeimfive',
  'legaladvice',
)
# The Reddit batches of the published comparisons. cnndm*.json are news.
_TLDR_FILES = tuple(
  f'comparisons/{name}.json'
  for name in (*(f'batch{i}' for i in (*range(3, 21), 22)), 'edit_b2_eval_test')
)

# In each set, the order of configs matters: the first one is the default.
SETS = {
  'hh_rlhf': PublishedSet(
    'Anthropic HH: helpful and harmless dialogues, human labels.',
    'https://github.com/anthropics/hh-rlhf',
    'MIT',
    _HUB + 'Anthropic/hh-rlhf/resolve/main/',
    _merged(
      {
        config: {s: (f'{config}/{s}.jsonl.gz',) for s in ('train', 'test')}
        for config in _HH_CONFIGS
      }
    ),
    _PAIR_COLUMNS,
    _hh_row,
  ),
  'shp': PublishedSet(
    'Stanford Human Preferences: Reddit answers, votes decide.',
    'https://huggingface.co/datasets/stanfordnlp/SHP',
    'Reddit API terms',
    _HUB + 'stanfordnlp/SHP/resolve/main/',
    _merged(
      {
        config: {
          s: (f'{config}/{s}.json',) for s in ('train', 'validation', 'test')
        }
        for config in _SHP_CONFIGS
      }
    ),
    _PAIR_COLUMNS | _SCORE_COLUMNS,
    _shp_row,
  ),
  'ultrafeedback_binarized': PublishedSet(
    'UltraFeedback: best of four answers by GPT-4 against another of them.',
    'https://huggingface.co/datasets/HuggingFaceH4/ultrafeedback_binarized',
    'MIT',
    _HUB + 'HuggingFaceH4/ultrafeedback_binarized/resolve/main/',
    {
      'default': {
        split: (f'data/{split}-00000-of-00001.parquet',)
        for split in ('train_prefs', 'test_prefs', 'train_sft', 'test_sft')
      }
    },
    {'prompt': 'text', 'chosen': 'messages', 'rejected': 'messages'}
    | _SCORE_COLUMNS,
    _ultrafeedback_row,
  ),
  'tldr_comparisons': PublishedSet(
    'OpenAI summarize_from_feedback: two TL;DRs of a Reddit post.',
    'https://github.com/openai/summarize-from-feedback',
    'MIT',
    'https://openaipublic.blob.core.windows.net/summarize-from-feedback/'
    'dataset/',
    {'default': dict.fromkeys(('train', 'valid1', 'valid2'), _TLDR_FILES)},
    _PAIR_COLUMNS,
    _tldr_row,
  ),
  'imdb_reviews': PublishedSet(
    'Large Movie Review Dataset, for SFT; read by tfds_builders.py.',
    'https://ai.stanford.edu/~amaas/data/sentiment/',
    'research use',
    'https://ai.stanford.edu/~amaas/data/sentiment/',
    {
      'plain_text': dict.fromkeys(
        ('train', 'test', 'unsupervised'), ('aclImdb_v1.tar.gz',)
      )
    },
    {'text': 'text'},
    lambda row, split, where: row,
  ),
}


def fix(name: str, file: str, manual_dir: str) -> str:
  """Returns the fix for a file that is not in the manual directory."""
  path = shlex.quote(os.path.join(manual_dir, name, file))
  return (
    f'put it there (curl -L --create-dirs -o {path} {SETS[name].url}{file}) '
    'or name another manual directory'
  )
