"""Patterns of an adapter_config.json: none that may take for ever to match."""

import json

import pytest

from dpo_jax.storage import peft_config
from dpo_jax.types import InputError


def read(tmp_path, pattern):
  text = json.dumps({'peft_type': 'LORA', 'rank_pattern': {pattern: 4}})
  (tmp_path / 'adapter_config.json').write_text(text)
  return peft_config.read(tmp_path)['rank_pattern']


@pytest.mark.parametrize(
  'pattern',
  [
    '([a-z_.0-9]+)+X',
    '(.|.)' * 40 + 'X',
    '((a|b)(a|b))' * 9,
    r'([)]|.)' * 40 + 'X',
    r'(\)|.)' * 40 + 'X',
    r'([])]|.)' * 40 + 'X',
    '.*.*.*.*X',
    r'(.)\1',
  ],
)
def test_slow_patterns_are_refused(tmp_path, pattern):
  with pytest.raises(InputError, match='adapter_config.json.*rank_pattern'):
    read(tmp_path, pattern)


@pytest.mark.parametrize(
  'pattern',
  [
    'q_proj',
    r'model\.layers\.(0|1|2|3)\.self_attn\.q_proj',
    'layers.[0-9]+.mlp',
  ],
)
def test_patterns_of_real_adapters_are_taken(tmp_path, pattern):
  assert read(tmp_path, pattern) == {pattern: 4}
