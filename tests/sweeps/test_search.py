"""Search: points one by one, each trained once, in an ordinary folder."""

import json

import experiment
import pytest

import dpo_jax
from dpo_jax.run import job as job_lib
from dpo_jax.types import InputError


def test_a_search_trains_points_one_by_one(tmp_path, monkeypatch, capsys):
  path, made = experiment.write(tmp_path), []
  make = job_lib._make_programs
  monkeypatch.setattr(
    job_lib, '_make_programs', lambda *args: made.append(1) or make(*args)
  )
  search = dpo_jax.Search(path, tmp_path / 'sweep', {'train.num_steps': 2})
  records = [search.train({'loss.beta': beta}) for beta in (0.1, 0.3, 0.1)]
  losses = [record.metrics['eval']['loss'][-1] for record in records]
  assert losses[0] == losses[2] != losses[1]
  assert made == [1]  # points that differ in beta share their programs
  listed = json.loads((tmp_path / 'sweep/sweep.json').read_text())['points']
  assert [point['name'] for point in listed] == ['beta=0.1', 'beta=0.3']
  # One line per training; no total is known, and no time that is left.
  said = capsys.readouterr().out.splitlines()
  assert [line.partition(':')[0] for line in said] == ['beta=0.1', 'beta=0.3']
  assert not [line for line in said if 'left' in line or '/0]' in line]
  # A driver that starts again finds what is done.
  again = dpo_jax.Search(path, tmp_path / 'sweep', {'train.num_steps': 2})
  record = again.train({'loss.beta': 0.3})
  assert record.metrics['eval']['loss'][-1] == losses[1]
  assert not capsys.readouterr().out
  with pytest.raises(InputError, match='config.loss.beta: -1.0 is not allowed'):
    again.train({'loss.beta': -1.0})
