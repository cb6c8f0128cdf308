"""Every experiment file: loads, validates, trains two steps, and sweeps."""

import importlib.util
import json
import pathlib

import numpy as np
import pytest

from dpo_jax import config as config_lib
from dpo_jax import main as main_lib
from dpo_jax import types
from dpo_jax.data.batches import length_table
from dpo_jax.losses import catalogue
from dpo_jax.losses import rules as loss_rules
from dpo_jax.types import InputError

ROOT = pathlib.Path(__file__).resolve().parents[1]
FILES = [
  path
  for path in sorted((ROOT / 'experiments').glob('*.py'))
  if 'def get_config(' in path.read_text()  # the others are no experiments
]
IDS = [path.stem for path in FILES]


def load(path):
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.mark.parametrize('path', FILES, ids=IDS)
def test_it_validates_and_says_what_it_is(path):
  module = load(path)
  config_lib.validate(module.get_config())
  for word in ('Question:', 'Command', 'Hardware:', 'Expected:'):
    assert word in module.__doc__, word


PRESETS = ROOT / 'experiments/paper_presets.py'
# Runs of two steps: every file, and a second preset.
SHORT = [f'{path}:runlocal' for path in FILES]
SHORT += [f'{PRESETS}:simpo_llama3_instruct,runlocal']


@pytest.mark.parametrize('experiment', SHORT, ids=lambda x: x.split('/')[-1])
def test_runlocal_trains_two_steps(experiment, tmp_path):
  workdir = tmp_path / 'run'
  assert main_lib.main([f'--config={experiment}', f'--workdir={workdir}']) == 0
  lines = [
    json.loads(line)
    for line in (workdir / 'metrics.jsonl').read_text().splitlines()
  ]
  steps = [line['step'] for line in lines if line['split'] == 'train']
  assert steps == [1, 2]


@pytest.mark.parametrize('path', FILES, ids=IDS)
def test_every_point_of_its_sweep_validates(path):
  for sweep in sweeps(load(path)).values():
    for arg, values in sweep():
      config_lib.validate(config_lib.load(f'{path}:{arg}', values.items()))


def sweeps(module):
  """{name: function} of an experiment's sweep and its named parts."""
  return {
    name: function
    for name, function in vars(module).items()
    if name == 'sweep' or name.startswith('sweep_')
  }


@pytest.mark.parametrize(
  'stem,sizes',
  [
    ('ablate_beta', {'sweep': 60, 'sweep_few': 12}),
    ('ablate_loss', {'sweep': 420, 'sweep_short': 138}),
    ('label_noise', {'sweep': 175, 'sweep_short': 45}),
  ],
)
def test_an_ablation_has_the_runs_that_it_says(stem, sizes):
  module = load(ROOT / f'experiments/{stem}.py')
  points_of = {name: list(sweep()) for name, sweep in sweeps(module).items()}
  assert {name: len(points) for name, points in points_of.items()} == sizes
  assert f'{sizes["sweep"]} runs' in module.__doc__
  # Points differ, so no run is made twice.
  for points in points_of.values():
    assert len({str(point) for point in points}) == len(points)


def test_the_ablation_of_losses_leaves_out_what_the_pairs_cannot_train():
  module = load(ROOT / 'experiments/ablate_loss.py')
  # A record as those of stories_lexicon: two answers with scores and a margin.
  record = types.EncodedRecord(
    prompt=np.ones(2, np.int32),
    completions=(np.ones(1, np.int32), np.ones(2, np.int32)),
    comparisons=(types.Comparison(0, 1, 1.0, 2.0),),
    scores=(3.0, 1.0),
  )
  table = length_table.make_table([record])
  columns = length_table.columns(table, np.arange(1))
  known = catalogue.read()
  refused = {'sft'}  # nll under another name
  for name, loss in known.items():
    try:
      loss_rules.check_data({name: loss}, columns)
    except InputError:
      refused.add(name)
  assert refused == set(module.LEFT_OUT)
  assert {*module.LOSSES, *refused} == set(known)
  assert all(f'`{name}`' in module.__doc__ for name in module.LEFT_OUT)


def test_the_ablation_of_label_noise_keeps_the_flips_of_its_losses_equal():
  module = load(ROOT / 'experiments/label_noise.py')
  for arg, values in module.sweep():
    assert set(values) == {'data.flip_share', 'seed'}
    config = module.get_config(arg)
    assert config.data.flip_seed == 0 and config.loss.beta == 0.1


# Settings copied from the papers and recipes that experiments/paper_presets.py
# cites: name -> (terms, beta, gamma, learning rate, batch, epochs, optimiser,
# schedule, warm-up as steps or fraction).
SIGMOID, TULU3, SIMPO = ({t: 1} for t in ('sigmoid', 'sigmoid_norm', 'simpo'))
RMSPROP = ('rmsprop', 'constant', 150)
COSINE, LINEAR = ('adamw', 'cosine', 0.1), ('adamw', 'linear', 0.1)
PUBLISHED = {
  'dpo_hh': (SIGMOID, 0.1, None, 1e-6, 64, 1, *RMSPROP),
  'dpo_hh_code': (SIGMOID, 0.1, None, 5e-7, 64, 1, *RMSPROP),
  'dpo_tldr': (SIGMOID, 0.5, None, 1e-6, 64, 1, *RMSPROP),
  'zephyr_7b': (SIGMOID, 0.1, None, 5e-7, 32, 3, *LINEAR),
  'zephyr_7b_handbook': (SIGMOID, 0.01, None, 5e-7, 128, 1, *COSINE),
  'tulu3_8b': (TULU3, 5, None, 5e-7, 128, 1, *LINEAR),
  'tulu3_70b': (TULU3, 5, None, 2e-7, 128, 1, *LINEAR),
  'simpo_mistral_base': (SIMPO, 2, 2 * 0.8, 3e-7, 128, 1, *COSINE),
  'simpo_mistral_instruct': (SIMPO, 2.5, 2.5 * 0.1, 5e-7, 128, 1, *COSINE),
  'simpo_llama3_base': (SIMPO, 2, 2 * 0.5, 6e-7, 128, 1, *COSINE),
  'simpo_llama3_instruct': (SIMPO, 2.5, 2.5 * 0.55, 1e-6, 128, 1, *COSINE),
  'mpo': ({'sigmoid': 0.8, 'bco': 0.2, 'nll': 1}, 0.1, None)
  + (5e-7, 128, 1, *COSINE),
  'rpo': ({'sigmoid': 1, 'nll': 1}, 0.1, None, 5e-7, 128, 1, *COSINE),
}


@pytest.mark.parametrize('name', load(PRESETS).PRESETS)
def test_a_preset_has_its_published_settings(name):
  config = config_lib.load(f'{PRESETS}:{name}')
  config_lib.validate(config)
  loss, optim, train = config.loss, config.optim, config.train
  terms, *numbers = PUBLISHED[name]
  assert config_lib.loss_terms(config) == terms
  settings = [
    *(loss.beta, loss.gamma, optim.learning_rate),
    *(train.batch_size, train.num_epochs, optim.name, optim.schedule),
    optim.warmup_steps or optim.warmup_fraction,
  ]
  assert settings == numbers
  # A loss that reads no reference gets none.
  assert (config.reference.mode == 'none') == ('simpo' in loss.terms)
  config_lib.validate(config_lib.load(f'{PRESETS}:{name},runlocal'))


def test_simpo_presets_have_the_lengths_of_their_authors():
  # princeton-nlp/SimPO, training_configs/*.yaml: max_length and
  # max_prompt_length.
  lengths = {
    name: (config.data.max_length, config.data.prompt_max_length)
    for name in PUBLISHED
    if name.startswith('simpo')
    for config in (config_lib.load(f'{PRESETS}:{name}'),)
  }
  assert lengths.pop('simpo_mistral_base') == (1024, 512)
  assert set(lengths.values()) == {(2048, 1800)} and len(lengths) == 3


def test_every_published_mix_is_a_preset():
  assert set(loss_rules.MIXES) <= set(PUBLISHED)
  assert set(PUBLISHED) == set(load(PRESETS).PRESETS)


@pytest.mark.parametrize(
  'arg,words',
  [
    ('simpo_lama3_instruct', "did you mean 'simpo_llama3_instruct'?"),
    ('mpo,rpo', 'names 2 presets; fix: name one of rpo, mpo'),
  ],
)
def test_a_preset_that_is_not_one_is_refused(arg, words):
  with pytest.raises(InputError) as error:
    config_lib.load(f'{PRESETS}:{arg}')
  assert words in str(error.value) and '\n' not in str(error.value)
