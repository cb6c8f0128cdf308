"""points: names, digests, graphs, and refusals before anything starts."""

import experiment
import pytest

from dpo_jax.config import stored
from dpo_jax.sweeps import points
from dpo_jax.types import InputError


@pytest.fixture
def path(tmp_path):
  return experiment.write(tmp_path)


def names(*args, **kwargs):
  return [point.name for point in points.read(*args, **kwargs)]


def test_the_experiments_own_sweep(path):
  listed = points.read(path)
  assert [p.name for p in listed] == [
    'beta=0.1,seed=0',
    'beta=0.1,seed=1',
    'beta=0.3,seed=0',
    'beta=0.3,seed=1',
  ]
  assert len({p.digest for p in listed}) == 4
  assert len({p.graph for p in listed}) == 1  # beta and seed are traced


def test_a_named_sub_sweep_has_points_of_two_graphs(path):
  listed = points.read(path, name='losses')
  assert [p.name for p in listed] == [
    'loss=sigmoid,beta=0.1',
    'loss=ipo,beta=0.1',
  ]
  assert len({p.graph for p in listed}) == 2


def test_flags_give_a_product(path):
  swept = [('seed', '0:3'), ('loss.beta', '.1,1e-2')]
  assert names(path, swept=swept) == [
    f'seed={seed},beta={beta}' for seed in range(3) for beta in (0.1, 0.01)
  ]
  # Arguments of the command belong to every point.
  swept = [('arg', 'loss=ipo,loss=sigmoid')]
  listed = points.read(f'{path}:runlocal', swept=swept)
  assert [p.arg for p in listed] == [
    'runlocal,loss=ipo',
    'runlocal,loss=sigmoid',
  ]


def test_points_of_one_graph_are_together(path):
  swept = [('seed', '0:2'), ('arg', 'loss=ipo,loss=sigmoid')]
  listed = points.read(path, swept=swept)
  assert [p.arg for p in listed] == ['loss=ipo'] * 2 + ['loss=sigmoid'] * 2


@pytest.mark.parametrize(
  ('text', 'values'),
  [
    ('0:5', [0, 1, 2, 3, 4]),
    ('0:20:5', [0, 5, 10, 15]),
    ('7,0:2,3', [7, 0, 1, 3]),
  ],
)
def test_ranges_of_whole_numbers(text, values):
  assert points.values_of('seed', text) == values


def test_semicolons_part_values_with_commas():
  assert points.values_of('adapter.targets', 'query,value;*') == [
    'query,value',
    '*',
  ]
  assert points.values_of('data.strict', 'true,false') == [True, False]
  assert points.values_of('loss.ld_alpha', 'None,0.5') == [None, 0.5]


# (flags, words of the refusal)
BAD = [
  ([('loss.bet', '1')], ("'loss.beta'",)),
  ([('seed', '0:0')], ('--sweep.seed', 'no range', '0:5')),
  ([('seed', 'a:b')], ('--sweep.seed', 'no range')),
  ([('loss.beta', '')], ('--sweep.loss.beta', 'empty')),
  ([('loss.beta', '1,,2')], ('--sweep.loss.beta', 'empty')),
  ([('loss.beta', '1,1')], ('--sweep.loss.beta', 'twice')),
  ([('loss.beta', '1'), ('loss.beta', '2')], ('--sweep.loss.beta', 'twice')),
  ([('loss.beta', '.1,-1')], ('beta=-1', 'config.loss.beta', '> 0')),
  ([('loss.beta', '1,1.0')], ('beta=1', 'the same run')),
  ([('train.save_every', '1,2')], ('the same run',)),  # changes no number
  ([('arg', 'los=ipo')], ('los=ipo', "'loss'")),
]


@pytest.mark.parametrize(('swept', 'words'), BAD)
def test_a_bad_flag_is_refused_in_one_line(path, swept, words):
  with pytest.raises(InputError) as error:
    points.read(path, swept=swept)
  assert str(error.value).count('\n') == 0
  assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize(
  ('name', 'words'),
  [
    ('broken', ('experiment.py:', 'ZeroDivisionError')),
    ('none', ('sweep_none() gives no point',)),
    ('loses', ('no function sweep_loses()', "'losses'")),
  ],
)
def test_a_bad_sub_sweep_is_refused_at_its_line(path, name, words):
  with pytest.raises(InputError) as error:
    points.read(path, name=name)
  assert all(word in str(error.value) for word in words), error.value


def test_an_override_of_a_swept_key_is_refused(path):
  with pytest.raises(InputError, match='config.loss.beta.*the sweep varies it'):
    points.read(path, [('loss.beta', '0.5')])


def test_runlocal_leaves_a_few_points(tmp_path):
  path = experiment.write(tmp_path, **{'range(2)': 'range(5)'})
  listed = points.read(path)
  assert len(listed) == 10
  assert [p.values for p in points.read(f'{path}:runlocal')] == [
    p.values for p in listed[:4]
  ]


def test_a_name_is_one_that_a_file_system_takes():
  name = points.name_of('', {'data.train': 'a/b c.jsonl', 'loss.beta': 0.1})
  assert name == 'train=a_b_c.jsonl,beta=0.1'
  long = points.name_of('', {'data.train': 'x' * 300})
  assert len(long) <= 120 and long != points.name_of(
    '', {'data.train': 'x' * 301}
  )
  # Two keys of one last part keep their sections.
  both = points.name_of('', {'data.max_length': 1, 'sample.max_length': 2})
  assert both == 'data.max_length=1,sample.max_length=2'


def test_the_graph_leaves_out_what_a_step_takes_as_arguments(path):
  def graph(*overrides):
    return points.make(path, overrides, {}).graph

  same = graph()
  for traced in (
    ('seed', 7),
    ('loss.beta', 0.7),
    ('optim.learning_rate', 0.1),
    ('train.save_every', 4),
    ('loss.terms.sigmoid', 2.0),
  ):
    assert graph(traced) == same, traced
  for other in (
    ('loss.terms.nll', 1.0),
    ('loss.f_divergence', 'forward_kl'),
    ('loss.wpo', True),
    ('optim.schedule', 'linear'),
    ('train.num_steps', 8),
    ('data.max_length', 31),
    ('reference.mode', 'params'),
  ):
    assert graph(other) != same, other
  assert 'seed' not in stored.NO_NUMBERS


def mode(path, *overrides):
  """reference.mode of a sweep's point whose experiment says 'params'."""
  [point] = points.read(path, overrides, [('seed', '0')])
  return point.config.reference.mode


def test_points_read_the_references_scores_from_the_cache(tmp_path):
  path = experiment.write(tmp_path, **{"'cache' if": "'params' if"})
  assert mode(path) == 'cache'
  # What a flag says stays, and so does what the cache cannot serve.
  assert mode(path, ('reference.mode', 'params')) == 'params'
  assert mode(path, ('loss.tr_dpo', True)) == 'params'
  assert mode(path, ('eval.num_samples', 2)) == 'params'
  assert mode(f'{path}:loss=tdpo1') == 'params'
  assert mode(f'{path}:loss=simpo') == 'none'
  off = ('adapter.rank', 2), ('reference.mode', 'adapter_off')
  assert mode(path, *off) == 'adapter_off'
