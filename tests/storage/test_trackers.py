"""trackers: the numbers of metrics.jsonl, and failures that cost no run."""

import sys
import types

import pytest

from dpo_jax.storage import trackers, writers
from dpo_jax.storage.metrics_file import read, values
from dpo_jax.types import InputError


class Fake:
  """A package with the interface of W&B, which keeps what it is given."""

  def __init__(self, fails=()):
    self.started, self.lines, self.finished, self.fails = {}, [], 0, fails

  def init(self, **keywords):
    self._fail('init')
    self.started = keywords
    return self

  def log(self, metrics, step):
    self._fail('log')
    self.lines.append((step, metrics))

  def finish(self):
    self._fail('finish')
    self.finished += 1

  def _fail(self, name):
    if name in self.fails:
      raise OSError(f'{name} has no network\nand more')


@pytest.fixture
def package(monkeypatch):
  """Puts a Fake in the place of wandb."""

  def put(**keywords):
    fake = Fake(**keywords)
    module = types.ModuleType('wandb')
    module.init = fake.init
    monkeypatch.setitem(sys.modules, 'wandb', module)
    return fake

  return put


def write(tmp_path, lines):
  """Writes two lines of metrics with a tracker."""
  tracker = trackers.Tracker(
    'wandb',
    tmp_path,
    project='p',
    group='g',
    config={'loss': {'beta': 0.1}},
    log=lines.append,
  )
  with writers.MetricWriter(tmp_path, total_steps=2, tracker=tracker) as writer:
    writer.write(1, 'train', {'loss': 0.5, 'bad': float('nan')})
    writer.write(1, 'eval', {'rewards/accuracies': 0.75})


def test_it_gets_the_numbers_of_the_file_under_their_names(package, tmp_path):
  fake, lines = package(), []
  write(tmp_path, lines)
  assert lines == [] and fake.finished == 1
  assert fake.started['project'] == 'p' and fake.started['group'] == 'g'
  assert fake.started['name'] == tmp_path.name
  assert fake.started['config'] == {'loss.beta': 0.1}
  wanted = [
    (e['step'], {f'{e["split"]}/{k}': v for k, v in values(e).items()})
    for e in read(tmp_path / 'metrics.jsonl')
  ]
  assert str(fake.lines) == str(wanted)  # NaN is no equal of itself


def test_the_same_place_is_the_same_run(package, tmp_path):
  first, second = package(), package()
  trackers.Tracker('wandb', tmp_path, log=print)
  assert second.started['resume'] == 'allow' and not first.started
  again = package()
  trackers.Tracker('wandb', tmp_path, log=print)
  assert again.started['id'] == second.started['id']


@pytest.mark.parametrize(
  ('fails', 'word'),
  [('init', 'started'), ('log', 'written'), ('finish', 'closed')],
)
def test_a_failure_is_one_line_and_no_lost_metric(
  package, tmp_path, fails, word
):
  package(fails=(fails,))
  lines = []
  write(tmp_path, lines)
  assert len(lines) == 1 and f'could not be {word}' in lines[0]
  assert '\n' not in lines[0] and 'metrics.jsonl' in lines[0]
  assert len(read(tmp_path / 'metrics.jsonl')) == 2


def test_a_package_that_is_missing_is_refused():
  with pytest.raises(InputError, match='pip install trackio'):
    trackers.check('trackio')
  trackers.check('none')
