"""Row labels: which keys, which words, which order."""

import json

import pytest

from dpo_jax.results import collect, labels
from dpo_jax.storage import files
from dpo_jax.types import InputError


def _groups(paths):
  return labels.ordered(collect.group_runs(collect.collect(paths)))


def test_runs_that_differ_in_seed_only_are_one_group(make_run, tmp_path):
  for beta in (0.1, 1.0):
    for seed in (10, 9, 2):
      changes = {'seed': seed, 'loss.beta': beta, 'data.seed': 7}
      make_run(f'{beta}/{seed}', changes)
  groups = _groups([tmp_path])
  assert [group.seeds for group in groups] == [(2, 9, 10)] * 2
  made = labels.make_labels(groups)
  assert made.keys == ('loss.beta',) and made.names == ('beta',)
  assert made.values == (('0.1',), ('1',)) and made.numbers == (0.1, 1.0)


def test_1_and_1_0_are_the_same_config(make_run, tmp_path):
  make_run('a', {'loss.beta': 1})
  make_run('b', {'loss.beta': 1.0, 'seed': 1})
  assert len(_groups([tmp_path])) == 1


def test_labels_are_short_where_no_other_key_ends_so(make_run, tmp_path):
  make_run('a', {'model.name': 'tiny', 'optim.name': 'lion'})
  make_run('b', {'model.name': 'tiny', 'loss.terms': {'ipo': 1, 'nll': 0.2}})
  make_run('c', {'data.train': '/elsewhere/shp.jsonl'})
  made = labels.make_labels(_groups([tmp_path]))
  assert made.names == ('Loss', 'model.name', 'optim.name', 'train')
  assert made.values == (
    ('DPO', '-', 'adamw', 'shp.jsonl'),
    ('DPO', 'tiny', 'lion', 'hh.jsonl.gz'),
    ('IPO + 0.2 NLL (SFT)', 'tiny', 'adamw', 'hh.jsonl.gz'),
  )


def test_paths_of_one_file_name_stay_whole(make_run, tmp_path):
  make_run('a', {'data.train': '/x/train.jsonl'})
  make_run('b', {'data.train': '/y/train.jsonl'})
  made = labels.make_labels(_groups([tmp_path]))
  assert made.values == (('/x/train.jsonl',), ('/y/train.jsonl',))


def test_many_differing_keys_shrink_to_those_that_tell(make_run, tmp_path):
  same = {'stage': 'sft', **{f'train.k{i}': 1 for i in range(6)}}
  for index, rate in enumerate((1e-3, 1e-4)):
    make_run(f's{index}', {**same, 'optim.learning_rate': rate})
  make_run('d', {f'train.k{i}': 2 for i in range(6)})
  made = labels.make_labels(_groups([tmp_path]))
  assert made.keys == ('stage', 'optim.learning_rate')
  assert set(made.left_out) == {f'train.k{i}' for i in range(6)}
  assert len(set(made.values)) == 3


def test_one_group_is_labelled_by_its_folder(make_run, tmp_path):
  made = labels.make_labels(_groups([make_run('quick')]))
  assert made.names == ('run',) and made.values == (('quick',),)


def test_order_is_that_of_the_arguments_then_of_the_values(make_run, tmp_path):
  for beta in (10.0, 2.0, 0.05, 0.1):
    make_run(f'sweep/{beta}', {'loss.beta': beta})
  other = make_run('z', {'loss.beta': 7.0})
  sft = make_run('sweep/sft', {'stage': 'sft', 'loss.beta': 2.0})
  groups = _groups([other, tmp_path / 'sweep'])
  betas = [group.runs[0].config['loss']['beta'] for group in groups]
  assert betas == [7, 2, 0.05, 0.1, 2, 10]
  assert groups[1].runs[0].path == sft


def test_configs_keep_nothing_but_their_own_values():
  config = {'a': {'b': 1, 'c': {}}, 'loss': {'terms': {'x': 1}}, 'd': [1]}
  want = {'a.b': 1, 'a.c': {}, 'loss.terms': {'x': 1}, 'd': [1]}
  config = json.loads(json.dumps(config))
  assert files.flatten(config, keep=labels._LEAVES) == want


def _labels(make_run, tmp_path, *changes):
  for index, each in enumerate(changes):
    make_run(f'{index}', each)
  return labels.make_labels(_groups([tmp_path]))


def test_what_follows_from_the_loss_is_no_column(make_run, tmp_path):
  # As config.json has them: the defaults of each loss, None for other losses.
  made = _labels(
    make_run,
    tmp_path,
    {'loss.label_smoothing': 0.0, 'loss.reduction': None},
    {
      'loss.terms': {'ipo': 1.0},
      'loss.label_smoothing': None,
      'loss.reduction': 'mean',
    },
    {'loss.terms': {'simpo': 1.0}, 'loss.beta': 2.0, 'loss.gamma': 1.0},
  )
  assert made.names == ('Loss',)
  assert made.values == (('DPO',), ('IPO',), ('SimPO',))
  assert set(made.implied) == {
    *('loss.beta', 'loss.label_smoothing', 'loss.reduction', 'loss.gamma'),
  }
  assert made.left_out == ()


@pytest.mark.parametrize(
  'modes, is_column',
  [
    (('cache', 'cache', 'none'), False),
    # Two modes of losses that read it: a reader wants to know.
    (('cache', 'params', 'none'), True),
    # A loss that reads none, and a run that has one all the same.
    (('cache', 'cache', 'cache'), False),
    (('none', 'cache', 'cache'), True),
  ],
)
def test_the_reference_s_mode_follows_from_losses_that_read_none(
  make_run, tmp_path, modes, is_column
):
  losses = 'sigmoid', 'ipo', 'simpo'
  settings = [
    {'loss.terms': {loss: 1.0}, 'reference.mode': mode}
    for loss, mode in zip(losses, modes)
  ]
  names = _labels(make_run, tmp_path, *settings).names
  assert ('mode' in names) == is_column


def test_what_one_loss_has_otherwise_is_a_column(make_run, tmp_path):
  made = _labels(
    make_run,
    tmp_path,
    {'loss.label_smoothing': 0.0},
    {'loss.label_smoothing': 0.2},
    {'loss.terms': {'ipo': 1.0}, 'loss.label_smoothing': None},
  )
  assert made.names == ('Loss', 'label_smoothing')
  assert made.values[2] == ('IPO', 'none')
  assert 'loss.label_smoothing' not in made.implied


def test_options_are_columns_and_imply_their_keys(make_run, tmp_path):
  made = _labels(
    make_run,
    tmp_path,
    {'loss.dr_dpo': True, 'loss.dr_beta': 1.0},
    {'loss.terms': {'ipo': 1.0}},
  )
  assert made.names == ('Loss', 'dr_dpo')
  assert 'loss.dr_beta' in made.implied


def test_losses_have_the_registry_s_labels():
  for terms, want in (
    ({'sigmoid': 1.0}, 'DPO'),
    ({'sigmoid': 1, 'nll': 0.25}, 'DPO + 0.25 NLL (SFT)'),
    ({'of_a_later_version': 2}, '2 of_a_later_version'),
    ({}, 'none'),
  ):
    assert labels.loss_label(terms) == want


@pytest.mark.parametrize(
  'name, key',
  [
    ('loss', 'loss.terms'),
    ('Loss', 'loss.terms'),
    ('beta', 'loss.beta'),
    ('loss.beta', 'loss.beta'),
    ('optim.name', 'optim.name'),
  ],
)
def test_keys_have_short_names(name, key):
  known = ('loss.terms', 'loss.beta', 'optim.name', 'model.name')
  assert labels.resolve(name, known, '--rows') == key


@pytest.mark.parametrize(
  'name, message',
  [
    ('name', "--rows: 'name' is the end of several keys; fix: use optim.name"),
    (
      'betta',
      "'betta' is no config key of these runs; fix: did you mean 'beta",
    ),
  ],
)
def test_an_unclear_key_is_one_line(name, message):
  known = ('loss.terms', 'loss.beta', 'optim.name', 'model.name')
  with pytest.raises(InputError) as caught:
    labels.resolve(name, known, '--rows')
  assert message in str(caught.value) and '\n' not in str(caught.value)


@pytest.mark.parametrize(
  'value, text, want',
  [
    (0.1, '.1', True),
    (0.1, '0.10', True),
    (0.1, '0.11', False),
    (5e-7, '5e-7', True),
    (None, 'none', True),
    (True, 'true', True),
    (True, '1', False),
    ({'sigmoid': 1.0}, 'sigmoid', True),
    ({'sigmoid': 1.0}, 'DPO', True),
    ({'sigmoid': 1.0}, 'ipo', False),
    ({'sigmoid': 1.0, 'nll': 0.2}, 'sigmoid+nll', True),
    ('/data/hh.jsonl', 'hh.jsonl', True),
    ('adamw', 'lion', False),
  ],
)
def test_values_are_found_as_people_write_them(value, text, want):
  assert labels.matches(value, text) == want
