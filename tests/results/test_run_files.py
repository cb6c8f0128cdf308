"""frontier/ of a run: rewards of its samples, by step."""

import json

import pytest

from dpo_jax.results import __main__ as command
from dpo_jax.results import collect
from dpo_jax.types import InputError

FACTS = {
  'step': 25,
  'reward': 'lexicon',
  'num_samples': 256,
  'temperature': 1.0,
  'max_new_tokens': 64,
  'metrics': {
    'reward': {'mean': 2.5, 'se': 0.1},
    'kl': {'mean': 4.7, 'se': 0.2},
  },
}


def _write(path, facts, name=None):
  (path / 'frontier').mkdir(exist_ok=True)
  file = path / 'frontier' / (name or f'step_{facts["step"]}.json')
  file.write_text(json.dumps(facts))


def test_steps_come_in_order_with_their_digests(make_run):
  path = make_run('a')
  assert collect.read_run(path).frontier == {}
  for step in (100, 25, 0):
    _write(path, {**FACTS, 'step': step})
  run = collect.read_run(path)
  assert list(run.frontier) == [0, 25, 100]
  assert run.frontier[25] == FACTS
  names = [name for name in run.digests if name.startswith('frontier/')]
  assert len(names) == 3
  # A report that is verified counts the files that it knew.
  run = collect.read_run(path, known={'frontier/step_25.json'})
  assert list(run.frontier) == [25]


@pytest.mark.parametrize(
  'changes',
  [
    {'step': None},
    {'metrics': None},
    {'metrics': {'kl': 3.0}},
    {'metrics': {'kl': {'mean': 'high', 'se': 0.1}}},
  ],
)
def test_a_bad_file_is_named(make_run, changes):
  path = make_run('a')
  _write(path, {**FACTS, **changes}, 'step_25.json')
  with pytest.raises(InputError, match=r'step_25\.json: has no step, or'):
    collect.read_run(path)


@pytest.mark.usefixtures('no_drawing')
def test_a_later_frontier_does_not_change_a_report(make_run, tmp_path):
  path, out = make_run('a'), tmp_path / 'out'
  assert command.main([str(path), f'--out={out}']) == 0
  _write(path, FACTS)
  assert command.main([f'--verify={out}']) == 0
  assert command.main([str(path), f'--out={out}']) == 0
  assert command.main([f'--verify={out}']) == 0
  _write(path, {**FACTS, 'num_samples': 8})
  assert command.main([f'--verify={out}']) == 1
