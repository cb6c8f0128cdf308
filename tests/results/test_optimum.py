"""The best value of a swept key: parabolas, intervals, ends, refusals."""

import math
import re
import shutil

import numpy as np
import pytest
from scipy import stats

from dpo_jax.results import collect, optimum
from dpo_jax.types import InputError

BETAS = (0.01, 0.1, 0.3, 1.0, 10.0)
TOPS = (0.1, 0.15, 0.2)  # where the parabola of each seed has its top


def find(folder, metrics=('-loss',), key='loss.beta'):
  return optimum.find(collect.collect([folder]), key, metrics)


@pytest.fixture
def parabolas(make_run, tmp_path):
  """Runs whose loss is 0.4 + log(beta / top)^2, with a top per seed."""
  for seed, top in enumerate(TOPS):
    for beta in BETAS:
      make_run(
        f'{beta},{seed}',
        {'seed': seed, 'loss': {'beta': beta}},
        final=0.4 + math.log(beta / top) ** 2,
      )
  return tmp_path


def test_a_parabola_has_its_top_found(parabolas):
  (one,) = find(parabolas)
  # A parabola through three points of a parabola is the parabola itself.
  np.testing.assert_allclose(one.per_seed, TOPS, rtol=1e-9)
  logs = np.log(TOPS)
  ends = stats.t.interval(0.95, 2, logs.mean(), stats.sem(logs))
  np.testing.assert_allclose(
    (one.best, one.low, one.high),
    np.exp([logs.mean(), *ends]),
    rtol=1e-9,
  )
  assert one.grid_best == 0.1 and one.num_at_ends == 0
  means = 0.4 + np.mean((np.log(0.1) - logs) ** 2)
  assert math.isclose(one.grid_value, means, rel_tol=1e-9)


def test_a_metric_that_grows_is_best_at_the_end(parabolas):
  (one,) = find(parabolas, ['loss'])  # as if a high loss were good
  assert (one.grid_best, one.num_at_ends) == (10.0, 3)
  assert one.per_seed == pytest.approx((10, 10, 10))
  assert (one.low, one.high) == pytest.approx((10, 10))


def test_equal_scores_have_their_middle_as_best():
  logs = np.log([1.0, 2.0, 4.0, 8.0, 16.0])
  flat = optimum._vertex(logs, np.array([0, 1.0, 1.0, 1.0, 0]))
  assert flat == pytest.approx(math.log(4))
  pair = optimum._vertex(logs, np.array([0, 1.0, 1.0, 0, 0]))
  assert pair == pytest.approx(math.log(2) + math.log(2) / 2)


def test_the_command_prints_a_table(parabolas, capsys):
  flags = [str(parabolas), '--key=loss.beta', '--metrics=-loss,loss']
  assert optimum.main(flags) == 0
  *_, first, second = capsys.readouterr().out.splitlines()
  assert first.startswith('| loss | 0.1 | ')
  assert '0.1, 0.15, 0.2 | 0 of 3 |' in first
  assert second.endswith('| 10, 10, 10 | 3 of 3 |')


@pytest.mark.parametrize(
  'change,words',
  [
    ('missing', 'there is no run of 1 with seed 2; fix: finish the sweep'),
    ('twice', 'loss.beta 10 of seed 2 is there twice'),
    ('few', 'the runs have 2 values of it'),
    ('other', 'in config.optim.learning_rate too'),
    ('metric', "reports no 'los' at step 10; fix: did you mean 'loss'?"),
    ('key', "config.tokenizer is ''; fix: name a key of numbers above 0"),
  ],
)
def test_runs_that_are_no_grid_are_refused(change, words, parabolas, capsys):
  flags = [str(parabolas), '--key=loss.beta']
  last = parabolas / '10.0,2'
  if change == 'missing':
    shutil.rmtree(parabolas / '1.0,2')
  elif change == 'twice':
    shutil.copytree(last, parabolas / 'again')
  elif change == 'few':
    for beta in BETAS[:3]:
      for seed in range(3):
        shutil.rmtree(parabolas / f'{beta},{seed}')
  elif change == 'other':
    config = last / 'config.json'
    text = config.read_text()
    rate = re.search(r'"learning_rate": [^,}]*', text)[0]
    config.write_text(text.replace(rate, '"learning_rate": 0.5'))
  elif change == 'metric':
    flags += ['--metrics=los']
  elif change == 'key':
    flags[1] = '--key=tokenizer'
  assert optimum.main(flags) == 2
  error = capsys.readouterr().err
  assert words in error and error.count('\n') == 1


def test_find_refuses_without_a_command(parabolas):
  with pytest.raises(InputError):
    find(parabolas, ['no such metric'])
