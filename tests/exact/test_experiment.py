"""experiments/exact_bandit.py: it loads, its flags parse, and it runs."""

import importlib.util
import pathlib

import pytest

from dpo_jax.exact import __main__ as exact_main

PATH = pathlib.Path(__file__).parents[2] / 'experiments/exact_bandit.py'
SPEC = importlib.util.spec_from_file_location(PATH.stem, PATH)
MODULE = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(MODULE)


def test_it_says_what_it_is():
  for word in ('Question:', 'Command', 'Hardware:', 'Expected:'):
    assert word in MODULE.__doc__, word


@pytest.mark.parametrize('name', MODULE.STUDIES)
def test_its_flags_parse(name):
  settings, _ = exact_main.parse([*MODULE.STUDIES[name], '--out=x'])
  assert settings.case == name


def test_it_runs_all_studies(tmp_path, capsys):
  changes = ['--losses=nll', '--betas=1', '--sizes=inf', '--noises=0']
  changes += ['--samplings=uniform', '--steps=2', '--seeds=1']
  assert MODULE.main([f'--out={tmp_path}', *changes]) == 0
  for name in MODULE.STUDIES:
    assert (tmp_path / name / 'exact.json').exists()
  assert MODULE.main([f'--out={tmp_path}', '--losses=dpo']) == 2
  assert "dpo is 'sigmoid' here" in capsys.readouterr().err
