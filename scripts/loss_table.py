"""Writes the table of docs/losses.md: python scripts/loss_table.py.

Only the lines between the table's two comments change.
"""

import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from dpo_jax import losses  # noqa: E402


def main() -> None:
  """Rewrites the table in place."""
  path = ROOT / 'docs/losses.md'
  text = path.read_text(encoding='utf-8')
  path.write_text(losses.refresh_table(text), encoding='utf-8')


if __name__ == '__main__':
  main()
