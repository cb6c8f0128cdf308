"""config.help: every knob is explained, and docs/config.md is current."""

import pathlib

import pytest

import dpo_jax
from dpo_jax import config, main, types
from dpo_jax.config import help as config_help
from dpo_jax.config import knobs

ROOT = pathlib.Path(__file__).resolve().parents[2]
PACKAGE = pathlib.Path(dpo_jax.__file__).parent
# Keys of registered functions: `used by` names what reads them.
REGISTERED = {key for key in knobs.flat() if key.startswith('loss.')}


def entries():
  return {entry.key: entry for entry in config_help._entries()}


def test_every_knob_has_a_comment_or_users():
  assert len(entries()) >= 100
  for key, entry in entries().items():
    assert entry.comment or entry.used_by, key
    if key not in REGISTERED:
      assert entry.comment, key


def test_every_comment_ends_with_modules_that_exist():
  modules = {path.stem for path in PACKAGE.rglob('*.py')}
  for key, entry in entries().items():
    if key not in REGISTERED and key != 'loss.terms.NAME':
      readers = entry.comment.rpartition('; ')[2].split(', ')
      assert set(readers) <= modules, (key, entry.comment)


@pytest.mark.parametrize('section', vars(knobs.root()))
def test_help_prints_each_key_of_a_section(section):
  text = config.help_text(section)
  assert max(map(len, text.splitlines())) <= 80
  for key, knob in knobs.flat().items():
    inside = key == section or key.startswith(f'{section}.')
    assert (f'config.{key}={knob.default!r}\n' in f'{text}\n') == inside


def test_help_of_a_key_holds_default_rule_comment():
  assert config.help_text('data.max_length').splitlines() == [
    'config.data.max_length=512',
    '    a whole number >= 2 and <= 1048576, e.g. 512',
    '    # tokens of prompt + completion; encode',
  ]
  # A comment on the lines above, and the default that means "not set".
  text = config.help_text('config.adapter.targets')
  assert "e.g. 'query,value', or ''" in text and "# '' = all linear" in text


def test_help_of_the_losses_names_what_uses_a_key():
  assert 'sigmoid' in config.help_text('loss.terms')
  assert 'used by ipo, uni_dpo (default' in config.help_text('loss.reduction')
  assert 'slic_hf (default 1.0)' in config.help_text('loss.delta')
  assert 'used by wpo' in config.help_text('loss.wpo')
  assert 'adamw, lion (default 0.9)' in config.help_text('optim.b1')


def test_the_command_prints_it(capsys):
  assert main.main(['--help=mesh']) == 0
  assert 'config.mesh.data=-1' in capsys.readouterr().out
  assert main.main(['--help']) == 0
  printed = capsys.readouterr().out
  assert '--workdir=DIR' in printed and '--help=SECTION' in printed
  for section in vars(knobs.root()):
    assert section in printed


def test_an_unknown_section_is_refused_on_one_line(capsys):
  assert main.main(['--help=los']) == 2
  error = capsys.readouterr().err
  assert error.startswith("--help: there is no section 'los'; fix: ")
  assert "did you mean 'loss'? " in error and error.count('\n') == 1
  with pytest.raises(types.InputError, match='sections are stage, seed, data'):
    config.help_text('zzz')


def test_the_page_of_the_config_is_current():
  page = (ROOT / 'docs' / 'config.md').read_text(encoding='utf-8')
  stale = 'docs/config.md is stale; run python scripts/config_table.py'
  assert page == config_help.config_page(), stale
  for key in knobs.flat():
    assert f'| `{key}` |' in page
