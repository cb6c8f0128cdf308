"""Pairs: which are listed, and whose texts they have."""

import numpy as np
import pytest

from dpo_jax.data.text import encoders
from dpo_jax.results import cells, collect
from dpo_jax.results.page import markup, pairs, texts
from dpo_jax.storage import caches

TEXTS = [(f'Prompt {i}.', f' chosen {i}', f'xrejected {i}') for i in range(5)]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
  # Not the user's: it may hold anything.
  monkeypatch.setenv(caches.FOLDER, str(tmp_path / 'user'))


def _lists(path) -> tuple[pairs.Lists, dict]:
  runs = collect.collect([path])
  table = cells.make_table(runs)
  lists = pairs.make_lists(table, {run.path: run.path.name for run in runs})
  made, absent = pairs.as_json(lists, texts.Finder(), 10**6)
  return lists, made | {'absent': absent}


def test_the_lowest_margins_come_first_with_their_texts(
  make_told_run, tmp_path
):
  margins = [1.0, -3.0, 2.0, -1.0, 0.5]
  make_told_run('runs/a', texts=TEXTS, margins=margins)
  _, made = _lists(tmp_path / 'runs')
  (worst,) = made['lists']
  assert worst['kind'] == 'worst' and worst['of'] == '5 held-out pairs'
  uids = [made['pairs'][index]['uid'] for index, *_ in worst['items']]
  assert uids == [f'{i:016x}' for i in (1, 3, 4, 0, 2)]
  # beta = 0.1; the rewards are 3/4 and -1/4 of the margin, see conftest.
  numbers = worst['items'][0][1:]
  np.testing.assert_allclose(numbers, [-0.3, -0.225, 0.075])
  first = made['pairs'][worst['items'][0][0]]
  assert first['prompt'] == [['Prompt 1.', False]]
  assert first['chosen'] == [[' chosen 1', True]]
  # The first token of the rejected side is no target.
  assert first['rejected'] == [['x', False], ['rejected 1', True]]
  assert first['tokens'] == [9, 10] and 'why' not in first
  assert made['absent'] == [
    'all seeds of run=a: pairs that all runs get wrong need two runs or more'
  ]


def test_only_pairs_that_every_seed_gets_wrong_are_mislabelled(
  make_told_run, tmp_path
):
  # Pair 3 is wrong in both seeds and mildly so, pair 1 in both and by much,
  # pair 0 in one only.
  for seed, margins in enumerate(([-9, -4, 2, -1, 1], [9, -4, 2, -1, 1])):
    name = f'runs/{seed}'
    make_told_run(name, {'seed': seed}, texts=TEXTS, margins=margins)
  _, made = _lists(tmp_path / 'runs')
  (only,) = [one for one in made['lists'] if one['kind'] == 'mislabelled']
  uids = [made['pairs'][index]['uid'] for index, *_ in only['items']]
  assert uids == [f'{i:016x}' for i in (1, 3)]
  assert only['of'] == (
    '2 pairs with a negative margin in all 2 runs, out of 5 held-out pairs'
  )
  # In units of the root mean square of the run's five margins.
  scale = np.sqrt((81 + 16 + 4 + 1 + 1) / 5)
  np.testing.assert_allclose(only['items'][0][1:], [-4 / scale] * 3, rtol=1e-5)


def test_runs_of_other_betas_count_alike(make_told_run, tmp_path):
  for beta, margins in ((0.1, [-1, -2, 3, 4, 5]), (10.0, [-2, -1, 3, 4, 5])):
    make_told_run(
      f'runs/{beta}',
      {'loss.beta': beta},
      texts=TEXTS,
      margins=margins,
      beta=beta,
    )
  _, made = _lists(tmp_path / 'runs')
  (only,) = [one for one in made['lists'] if one['kind'] == 'mislabelled']
  assert only['scope'] == 'all runs'
  one, two = (item[1] for item in only['items'])
  assert one == pytest.approx(two)


def test_comparisons_of_one_record_are_told_apart():
  uids = np.array([b'a', b'a', b'b', b'a'])
  assert list(texts.numbered(uids)) == [('a', 0), ('a', 1), ('b', 0), ('a', 2)]


def _without_cache(run, tmp_path):
  cache = run.parent / 'cache'
  cache.rename(tmp_path / 'away')


def _damaged(run, tmp_path):
  file = run.parent / 'cache' / 'tokens' / 'of-all' / 'tokens.array_record'
  file.write_bytes(file.read_bytes()[:-1] + b'?')


def _without_env(run, tmp_path):
  (run / 'env.json').unlink()


def _other_tokenizer(run, tmp_path):
  env = run / 'env.json'
  right = encoders.ByteTokenizer.fingerprint
  env.write_text(env.read_text().replace(right, 'f' * 64))


def _no_tokenizer(run, tmp_path):
  config = run / 'config.json'
  config.write_text(config.read_text().replace('"byte"', '"gone/model"'))


@pytest.mark.parametrize(
  'change, why',
  [
    (_without_cache, "are not in the run's cache, the sweep's cache, the "),
    (_damaged, 'are damaged; fix: remove them by --mode=cache'),
    (_without_env, 'env.json names no data and no tokenizer'),
    (_other_tokenizer, "the tokenizer 'byte' is not the one of the run"),
    (_no_tokenizer, "its tokenizer 'gone/model' is not at hand"),
  ],
)
def test_without_texts_there_are_numbers_and_the_reason(
  make_told_run, tmp_path, change, why
):
  run = make_told_run('runs/a', texts=TEXTS, margins=[1, 2, -3, 4, 5])
  change(run, tmp_path)
  _, made = _lists(tmp_path / 'runs')
  assert len(made['lists'][0]['items']) == 5
  given = [made['reasons'][pair['why']] for pair in made['pairs']]
  assert all(why in reason for reason in given)
  assert not any('chosen' in pair for pair in made['pairs'])
  (line,) = [line for line in made['absent'] if why in line]
  assert line.startswith('texts of 5 of 5 pairs are absent: ')


def test_a_record_with_other_numbers_of_tokens_is_not_shown(
  make_told_run, tmp_path
):
  run = make_told_run('runs/a', texts=TEXTS, margins=[1, 2, -3, 4, 5])
  file = run / 'per_example' / 'eval_10.npz'
  arrays = dict(np.load(file))
  arrays['chosen_tokens'][2] += 1
  np.savez(file, **arrays)
  _, made = _lists(tmp_path / 'runs')
  without = [pair['uid'] for pair in made['pairs'] if 'why' in pair]
  assert without == [f'{2:016x}']


def test_lists_and_texts_have_a_limit(make_told_run, tmp_path, monkeypatch):
  monkeypatch.setattr(pairs, 'MOST', 3)
  monkeypatch.setattr(texts, 'MOST', 300)
  long = [(word * 305,) * 3 for word in 'abcde']
  make_told_run('runs/a', texts=long, margins=[1, 2, -3, 4, 5])
  lists, made = _lists(tmp_path / 'runs')
  assert [len(one['items']) for one in made['lists']] == [3]
  assert made['lists'][0]['of'] == '5 held-out pairs'
  assert made['pairs'][0]['prompt'] == [
    [f'{"c" * 300} … (5 more characters)', False]
  ]
  room = len(markup.json_block('', made).text)
  full, lines = pairs.as_json(lists, texts.Finder(), room - 900)
  assert ['why' in pair for pair in full['pairs']] == [False, False, True]
  assert lines[-1] == 'texts of 1 of 3 pairs are absent: the page is full'
  full, lines = pairs.as_json(lists, texts.Finder(), 1200)
  assert [len(one['items']) for one in full['lists']] == [1]


@pytest.mark.parametrize(
  'without, why',
  [
    (('reward_chosen',), 'no rewards were saved'),
    (('rejected_tokens',), 'no numbers of tokens were saved'),
  ],
)
def test_runs_without_pairs_say_so(make_scored_run, tmp_path, without, why):
  make_scored_run('runs/a', margins=[1, 2], without=without)
  _, made = _lists(tmp_path / 'runs')
  assert made['lists'] == [] and made['pairs'] == []
  assert made['absent'][0].startswith(f'a: {why}')
