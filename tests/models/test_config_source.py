"""config_source: defaults, null, and refusals of a key."""

import published_configs
import pytest

from dpo_jax.models import config_source


def test_a_value_its_default_and_null():
  mapping = {'hidden_size': 8, 'rope_theta': 10, 'scalar': None, 'ropes': None}
  defaults = {'scalar': 3, 'tied': True, 'hidden_size': 5}
  source = config_source.Source(mapping, defaults, 'config.json')
  assert source.read('hidden_size', int) == 8
  assert source.read('tied', bool) is True
  # JSON does not tell 10 from 10.0.
  theta = source.read('rope_theta', float)
  assert theta == 10.0 and type(theta) is float
  # A null is the default, unless null is a value of its own.
  assert source.read('scalar', int) == 3
  assert source.read('scalar', int, nullable=True) is None
  assert source.get('absent') is None and source.objects('ropes') == {}
  # A key that follows from others may be absent.
  assert source.read('head_dim', int) is None


@pytest.mark.parametrize(
  'changes, words',
  [
    ({'hidden_size': None}, ["'hidden_size' is missing"]),
    ({'hidden_size': '2048'}, ["hidden_size = '2048'", 'positive integer']),
    ({'num_hidden_layers': 0}, ['num_hidden_layers = 0']),
    ({'num_attention_heads': True}, ['num_attention_heads = True']),
    ({'rms_norm_eps': -1.0}, ['rms_norm_eps = -1.0', 'positive number']),
    ({'tie_word_embeddings': 'no'}, ["tie_word_embeddings = 'no'", 'true']),
  ],
)
def test_refused_in_one_line(changes, words):
  published_configs.assert_refused(changes, words)
