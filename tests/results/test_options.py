"""Flags: what they mean, and what is refused in one line."""

import json

import pytest

from dpo_jax.results import options
from dpo_jax.types import InputError


def _parse(*flags) -> options.Options:
  return options.parse(['runs', '--out=x', *flags]).options


def test_every_flag_has_its_form():
  got = _parse(
    '--columns=loss, beta,accuracy before',
    '--rows=loss=ipo:sigmoid,beta=0.1',
    '--metrics=loss,kl',
    '--baseline=loss=sigmoid,beta=0.1',
    '--sort=loss,-accuracy',
    '--transpose',
    '--label=loss=Loss,sigmoid=DPO',
    '--at=best:-loss',
    '--figures=beta,curves',
    '--html',
    '--width=column',
  )
  assert got == options.Options(
    columns=('loss', 'beta', 'accuracy before'),
    rows=(('loss', ('ipo', 'sigmoid')), ('beta', ('0.1',))),
    metrics=('loss', 'kl'),
    baseline=(('loss', 'sigmoid'), ('beta', '0.1')),
    sort=('loss', '-accuracy'),
    transpose=True,
    label=(('loss', 'Loss'), ('sigmoid', 'DPO')),
    at=options.At('best', metric='-loss'),
    figures=('beta', 'curves'),
    html=True,
    width='column',
  )
  assert options.from_json(json.loads(json.dumps(got.as_json()))) == got


def test_without_flags_all_is_by_rule():
  assert _parse() == options.Options()
  text = json.dumps(options.Options().as_json())
  assert options.from_json(json.loads(text)) == options.Options()
  assert _parse('--baseline=none', '--figures=none') == options.Options(
    baseline=None, figures=()
  )
  # A list of options that an older version wrote.
  assert options.from_json({}) == options.Options()


@pytest.mark.parametrize(
  'text, want',
  [
    ('last', options.At()),
    ('best', options.At('best')),
    ('best:rewards/accuracies', options.At('best', None, 'rewards/accuracies')),
    ('tokens=1e6', options.At('tokens', 1e6)),
    ('kl=.5', options.At('kl', 0.5)),
  ],
)
def test_steps(text, want):
  assert _parse(f'--at={text}').at == want
  assert options.from_json({'at': str(want)}).at == want


@pytest.mark.parametrize(
  'flag, message',
  [
    ('--columns=', 'empty name'),
    ('--metrics=loss,,kl', 'empty name'),
    ('--metrics=loss,loss', "'loss' is there twice"),
    ('--rows=ipo', "'ipo' is not of the form key=value"),
    ('--rows=loss=', 'empty value'),
    ('--rows=loss=ipo:', 'empty value'),
    ('--rows=loss=ipo,loss=kto', 'a key is there twice'),
    ('--baseline=first', 'not of the form key=value'),
    ('--baseline=loss=', 'has no value'),
    ('--label=Loss', 'not of the form key=value'),
    ('--at=best:', "'best:' is not allowed"),
    ('--at=first', "'first' is not allowed"),
    ('--at=tokens=many', 'is not allowed'),
    ('--at=kl=-1', 'is not allowed'),
    ('--at=kl=nan', 'is not allowed'),
    ('--width=page', "'page' is not allowed; fix: use column or text"),
    ('--transpose=1', 'ignored explicit argument'),
    ('--paper=nowhere.py', '--paper=nowhere.py: cannot be run'),
    ('--recompute=beta=1 --sort=beta', '--recompute takes --metrics and'),
  ],
)
def test_bad_flags_are_one_line(flag, message):
  with pytest.raises(InputError) as caught:
    _parse(*flag.split())
  assert message in str(caught.value) and '\n' not in str(caught.value)
  assert '; fix: ' in str(caught.value)


def test_a_paper_says_what_flags_say(tmp_path):
  path = tmp_path / 'paper.py'
  path.write_text(
    'BETAS = [0.1, 0.5]\n'
    'def PAPER():\n'
    "  rows = {'beta': BETAS, 'loss': 'ipo'}\n"
    "  return {'rows': rows, 'columns': ['beta'], 'label': {'loss': 'Loss'},\n"
    "          'transpose': True, 'sort': 'beta', 'figures': 'none'}\n"
  )
  got = _parse(f'--paper={path}', '--sort=-beta')
  assert got == options.Options(
    columns=('beta',),
    rows=(('beta', ('0.1', '0.5')), ('loss', ('ipo',))),
    label=(('loss', 'Loss'),),
    transpose=True,
    sort=('-beta',),  # a flag counts more
    figures=(),
  )


@pytest.mark.parametrize(
  'text, message',
  [
    ('x = 1', 'has no PAPER'),
    ('PAPER = [1]', 'has no PAPER, or one that is no dict'),
    ('PAPER = 1 / 0', 'cannot be run (ZeroDivisionError: division by zero)'),
    ('PAPER =', 'cannot be run (SyntaxError'),
    ("PAPER = {'colums': ['a']}", "did you mean 'columns'?"),
    ("PAPER = {'html': 'yes'}", "html: 'yes' is no bool"),
    ("PAPER = {'rows': 3}", 'rows: 3 is no mapping'),
    ("PAPER = {'columns': 3}", 'columns: 3 is no list'),
  ],
)
def test_a_bad_paper_is_one_line(tmp_path, text, message):
  path = tmp_path / 'paper.py'
  path.write_text(text + '\n')
  with pytest.raises(InputError) as caught:
    _parse(f'--paper={path}')
  said = str(caught.value)
  assert said.startswith(f'--paper={path}') and '\n' not in said
  assert message in said
