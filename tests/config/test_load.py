"""config.load: experiment files, their arguments, overrides."""

import json
import pathlib

import pytest

from dpo_jax import config
from dpo_jax.config import paths
from dpo_jax.types import InputError

ROOT = pathlib.Path(__file__).resolve().parents[2]
EXPERIMENTS = [
  path
  for path in sorted((ROOT / 'experiments').glob('*.py'))
  if 'def get_config(' in path.read_text()  # the others are no experiments
]


def test_overrides_take_text_or_values_of_the_key_s_type(quickstart):
  loaded = config.load(
    quickstart('dpo'),
    [
      ('loss.beta', 1),
      ('optim.learning_rate', '3e-4'),
      ('data.train', ('a.jsonl', 'b,c.jsonl')),
      ('data.proportions', '0.7,0.3'),
      ('train.batch_size', '16'),
    ],
  )
  assert (loaded.loss.beta, loaded.optim.learning_rate) == (1.0, 3e-4)
  assert config.source_names(loaded.data.train) == ('a.jsonl', 'b,c.jsonl')
  assert config.proportions(loaded) == (0.7, 0.3)
  assert loaded.train.batch_size == 16
  with pytest.raises(InputError, match='config.train.batch_size: 1.5'):
    config.load(quickstart('dpo'), [('train.batch_size', 1.5)])


def test_none_unsets_an_option(load):
  loaded = load(
    'dpo', 'loss.beta=None loss.terms.sigmoid=0 loss.terms.nll=1 optim.b1=None'
  )
  assert loaded.loss.beta is None and loaded.optim.b1 is None


def test_a_loaded_config_is_locked_and_becomes_json(quickstart):
  loaded = config.load(quickstart('dpo'))
  for section in (loaded, loaded.loss, loaded.loss.terms, loaded.data):
    with pytest.raises((AttributeError, KeyError)):
      section.typo = 1
  resolved = json.loads(json.dumps(loaded.to_dict()))
  assert resolved['data']['train'] == 'synthetic'
  assert resolved['loss']['terms'] == {'sigmoid': 1.0}


def test_parse_arg_takes_its_types_from_the_defaults():
  args = config.parse_arg(
    'loss=ipo,steps=3,rate=1e-3,runlocal',
    loss='sigmoid',
    steps=1,
    rate=0.5,
    runlocal=False,
    other='x',
  )
  assert vars(args) == {
    'loss': 'ipo',
    'steps': 3,
    'rate': 1e-3,
    'runlocal': True,
    'other': 'x',
  }
  assert not config.parse_arg('runlocal=false', runlocal=True).runlocal


@pytest.mark.parametrize(
  'arg,words',
  [
    ('runlcal', "did you mean 'runlocal'"),
    ('steps', 'steps=INT'),
    ('steps=abc', "'abc'"),
    ('steps=', 'has no value'),
    ('runlocal=2', "'2'"),
    ('=3', 'arguments: steps, runlocal'),
  ],
)
def test_parse_arg_refuses(arg, words):
  with pytest.raises(InputError, match='config argument') as error:
    config.parse_arg(arg, steps=1, runlocal=False)
  assert words in str(error.value) and '; fix: ' in str(error.value)


@pytest.mark.parametrize('path', EXPERIMENTS, ids=lambda p: p.stem)
def test_every_experiment_loads_validates_and_says_what_it_is(path):
  source = path.read_text()
  for word in ('Question: ', 'Command', 'Hardware: ', 'Expected: '):
    assert word in source.split('"""')[1], word
  config.validate(config.load(str(path)))
  local = config.load(f'{path}:runlocal')
  config.validate(local)
  paths.check_paths(local)  # runs anywhere
  assert local.train.num_steps <= 10


@pytest.mark.parametrize('path', EXPERIMENTS, ids=lambda p: p.stem)
def test_every_point_of_every_sweep_is_valid(path):
  namespace = {'__name__': 'experiment', '__file__': str(path)}
  exec(compile(path.read_text(), str(path), 'exec'), namespace)
  points = list(namespace.get('sweep', lambda: ())())
  for arg, overrides in points:
    config.validate(config.load(f'{path}:{arg}', overrides.items()))
  assert len({str(point) for point in points}) == len(points)
