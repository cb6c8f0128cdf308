"""table: docs/losses.md has one row per entry of the registry."""

import pathlib

import pytest

from dpo_jax import losses
from dpo_jax.losses import records
from dpo_jax.types import InputError

ROOT = pathlib.Path(__file__).resolve().parents[2]
DOCS = (ROOT / 'docs/losses.md').read_text(encoding='utf-8')


def test_table_has_a_row_for_every_loss_and_option():
  lines = losses.table().splitlines()
  assert lines[0] == '| name | formula | paper | needs |'
  first = [line.split(' | ')[0].removeprefix('| ') for line in lines[2:]]
  options = [name.split(' (option')[0] for name in first]
  assert options == [*losses.names(), *losses.option_names()]
  # Bars in formulas are escaped: every row has four cells.
  assert all(line.replace('\\|', '').count('|') == 5 for line in lines)


def test_the_table_of_losses_is_the_registry_s():
  stale = 'docs/losses.md is stale; run python scripts/loss_table.py'
  assert losses.refresh_table(DOCS) == DOCS, stale


def test_a_stale_table_is_written_anew():
  old = DOCS.replace('| hinge |', '| hinges |').replace('| ipo |', '| io |')
  assert old != DOCS and losses.refresh_table(old) == DOCS
  with pytest.raises(InputError, match='no place for the table of losses'):
    losses.refresh_table('# A page without it\n')


def test_docs_explain_every_need_and_mix():
  text = DOCS.partition('<!-- end of losses -->')[2]
  explained = [line for line in text.splitlines() if line.startswith('| ')]
  first = ', '.join(line.split(' | ')[0].strip('| ') for line in explained)
  for need in records.NEEDS:
    assert need.replace('_', ' ') in first.split(', '), need
  for name, (terms, source) in losses.MIXES.items():
    (row,) = [line for line in explained if line.startswith(f'| `{name}` |')]
    numbers = ', '.join(f'`{term}` {w:g}' for term, w in terms.items())
    assert row == f'| `{name}` | {numbers} | {source} |'
