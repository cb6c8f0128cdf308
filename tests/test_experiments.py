"""Every experiment file: loads, validates, trains two steps, and sweeps."""

import importlib.util
import json
import pathlib

import pytest

from dpo_jax import config as config_lib
from dpo_jax import main as main_lib

ROOT = pathlib.Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / 'experiments').glob('*.py'))
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


@pytest.mark.parametrize('path', FILES, ids=IDS)
def test_runlocal_trains_two_steps(path, tmp_path):
  workdir = tmp_path / 'run'
  assert (
    main_lib.main([f'--config={path}:runlocal', f'--workdir={workdir}']) == 0
  )
  lines = [
    json.loads(line)
    for line in (workdir / 'metrics.jsonl').read_text().splitlines()
  ]
  steps = [line['step'] for line in lines if line['split'] == 'train']
  assert steps == [1, 2]


@pytest.mark.parametrize('path', FILES, ids=IDS)
def test_every_point_of_its_sweep_validates(path):
  sweep = getattr(load(path), 'sweep', lambda: ())
  for arg, values in sweep():
    config_lib.validate(config_lib.load(f'{path}:{arg}', values.items()))
