"""Writes the knobs into docs/config.md: python scripts/config_table.py."""

import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from dpo_jax.config import help as config_help  # noqa: E402


def main() -> None:
  """Rewrites the page."""
  path = ROOT / 'docs' / 'config.md'
  path.parent.mkdir(exist_ok=True)
  path.write_text(config_help.config_page(), encoding='utf-8')


if __name__ == '__main__':
  main()
