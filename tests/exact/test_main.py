"""The command: its files, its defaults, and its refusals."""

import json
import math

import pytest

from dpo_jax.exact import __main__ as exact_main
from dpo_jax.exact import choices


def test_a_study_from_the_command_line(tmp_path, capsys):
  words = [f'--out={tmp_path / "a/b"}', '--losses=ipo', '--betas=1,0.1']
  words += ['--sizes=inf', '--noises=0', '--samplings=uniform']
  words += ['--seeds=2', '--steps=1000', '--case=three_actions']
  assert exact_main.main([*words, '--measures=best,own']) == 0
  out, err = capsys.readouterr()
  files = {path.name for path in (tmp_path / 'a/b').iterdir()}
  assert {'exact.md', 'exact.csv', 'exact.json'} <= files
  assert out == (tmp_path / 'a/b/exact.md').read_text()
  assert 'wrote exact.md' in err and str(tmp_path) in err
  rows = json.loads((tmp_path / 'a/b/exact.json').read_text())['rows']
  # pi(best) = e^u / (e^u + 1 + e^-u), u = 1 / (3 beta): test_training.py.
  u = 1 / 3
  best = math.exp(u) / (math.exp(u) + 1 + math.exp(-u))
  assert abs(rows[0]['best'] - best) < 1e-6


def test_defaults():
  settings, options = exact_main.parse(['--out=x'])
  assert settings.case == 'bradley_terry' and options.measures == ('tv',)
  assert settings.losses == choices.read('default')
  assert settings.betas[0] == 1 and math.isinf(settings.sizes[0])
  assert settings.num_seeds == 10 and settings.steps == (1000,)


@pytest.mark.parametrize(
  'word,expected',
  [
    ('--case=bandit', "--case: 'bandit' is not known"),
    ('--losses=dpo', "dpo is 'sigmoid' here"),
    ('--betas=0', "--betas: '0' is not allowed; fix: use a number from"),
    ('--betas=1,x', "--betas: 'x' is not allowed"),
    ('--sizes=2.5', "--sizes: '2.5' is not allowed; fix: use a whole number"),
    ('--sizes=-inf', "--sizes: '-inf' is not allowed"),
    ('--noises=0.5', "--noises: '0.5' is not allowed"),
    ('--noises=nan', "--noises: 'nan' is not allowed"),
    ('--samplings=unifrom', "did you mean 'uniform'?"),
    ('--steps=0', "--steps: '0' is not allowed"),
    ('--seeds=1.5', "--seeds: '1.5' is not allowed"),
    ('--measures=tvd', "did you mean 'tv'?"),
    ('--beta=1', 'command line: '),
  ],
)
def test_refusals_are_one_line(word, expected, tmp_path, capsys):
  assert exact_main.main([f'--out={tmp_path / "x"}', word]) == 2
  out, err = capsys.readouterr()
  assert expected in err and err.count('\n') == 1 and not out
  assert not (tmp_path / 'x').exists()


def test_a_folder_is_needed(capsys):
  assert exact_main.main([]) == 2
  assert '--out' in capsys.readouterr().err


def test_a_folder_that_cannot_be_made(tmp_path, capsys):
  (tmp_path / 'file').write_text('')
  words = ['--losses=nll', '--sizes=inf', '--noises=0', '--samplings=uniform']
  words += ['--seeds=1', '--steps=2', '--case=three_actions', '--betas=1']
  assert exact_main.main([f'--out={tmp_path / "file/x"}', *words]) == 2
  err = capsys.readouterr().err
  assert str(tmp_path) in err.splitlines()[-1] and 'Traceback' not in err
