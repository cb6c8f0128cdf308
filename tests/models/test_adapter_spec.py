"""adapter_spec: scale, targets by pattern, refusals."""

import dataclasses

import pytest

from dpo_jax import types
from dpo_jax.models import adapter_spec
from dpo_jax.models.decoder_config import DecoderConfig

CONFIG = DecoderConfig(
  vocab_size=50,
  width=16,
  mlp_width=24,
  num_layers=2,
  num_heads=4,
  num_kv_heads=2,
  head_size=6,
)


def test_scale_is_alpha_over_rank_or_its_root():
  spec = adapter_spec.AdapterSpec(rank=3, alpha=6.0, targets=('mlp/up',))
  assert spec.scale == 2.0
  assert dataclasses.replace(spec, rank=4, rslora=True).scale == 3.0


@pytest.mark.parametrize(
  ('patterns', 'expected'),
  [
    ('', tuple(adapter_spec.LINEARS)),
    ('query, value', ('attention/query', 'attention/value')),
    ('mlp', ('mlp/gate', 'mlp/up', 'mlp/down')),
    ('^mlp/(up|down)$,key', ('attention/key', 'mlp/up', 'mlp/down')),
  ],
)
def test_targets_by_pattern(patterns, expected):
  assert adapter_spec.select(patterns) == expected


def test_patterns_that_cannot_be_used():
  for patterns, words in (
    ('query,vlaue', "'vlaue' matches nothing; fix: did you mean 'value'"),
    ('que(ry', 'is no regular expression'),
  ):
    with pytest.raises(types.InputError, match='config.adapter.targets') as e:
      adapter_spec.select(patterns)
    assert words in str(e.value) and '\n' not in str(e.value)
  ungated = dataclasses.replace(CONFIG, gated_mlp=False)
  with pytest.raises(types.InputError, match="'gate' matches nothing"):
    adapter_spec.select('gate', adapter_spec.linears(ungated))
