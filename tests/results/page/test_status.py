"""Status: every point of a sweep, in the words that --status uses."""

import json
import os

from dpo_jax.results import collect
from dpo_jax.results.page import status
from dpo_jax.storage import leases


def _sweep(make_run, tmp_path):
  make_run('sweep/good', {'train': {'num_steps': 10}})
  make_run('sweep/<b>cut', {'train': {'num_steps': 20}}, done=False)
  names = ('good', '<b>cut', 'bad', 'busy', 'later')
  sweep = tmp_path / 'sweep'
  points = [{'name': name} for name in names]
  (sweep / 'sweep.json').write_text(json.dumps({'points': points}))
  for folder in ('failed', 'claims'):
    (sweep / 'sweep' / folder).mkdir(parents=True)
  line = {'line': 'loss is <nan> at step 3', 'exit_code': 1}
  (sweep / 'sweep' / 'failed' / 'bad.json').write_text(json.dumps(line))
  owner = {'owner': leases.owner(), 'time': 0}
  (sweep / 'sweep' / 'claims' / 'busy.lock').write_text(json.dumps(owner))
  return sweep


def test_every_point_has_its_state_and_a_failure_its_line(make_run, tmp_path):
  sweep = _sweep(make_run, tmp_path)
  parts = status.sections(collect.collect([sweep]), tmp_path / 'out')
  text = ''.join(part.text for part in parts)
  assert '5 points: 1 done, 1 running, 1 stopped, 1 failed, 1 waiting' in text
  rows = text.split('<tr')[2:]
  for name, words in (
    ('good', ('state done', '10/10', '0.4000', '0.8000')),
    ('&lt;b&gt;cut', ('state stopped', '10/20')),
    ('bad', ('state failed', 'loss is &lt;nan&gt; at step 3')),
    ('busy', ('state running', str(os.getpid()))),
    ('later', ('state waiting',)),
  ):
    (row,) = [row for row in rows if f'<bdi>{name}</bdi>' in row]
    assert all(word in row for word in words), row
  assert '<b>' not in text and '../sweep' in text


def test_runs_outside_of_a_sweep_have_no_status(make_run, tmp_path):
  make_run('runs/a')
  assert status.sections(collect.collect([tmp_path / 'runs']), tmp_path) == []


def test_a_damaged_sweep_is_a_line_and_no_traceback(make_run, tmp_path):
  sweep = _sweep(make_run, tmp_path)
  (sweep / 'sweep.json').write_text('{"points": 3}')
  parts = status.sections(collect.collect([sweep]), tmp_path / 'out')
  assert 'no list of points with names' in parts[-1].text
