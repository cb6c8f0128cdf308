"""layer_patterns: windows and rotary positions of each layer."""

import published_configs
import pytest
from published_configs import GEMMA2, LLAMA, PYTHIA, read

from dpo_jax.models.decoder_config import Rope


def test_windows_by_the_rule_of_the_family():
  assert read(LLAMA).layer_windows == ()
  assert read(GEMMA2).layer_windows == (4096, 0) * 13
  mistral = read(LLAMA, model_type='mistral', sliding_window=4096)
  assert mistral.layer_windows == (4096,) * 16
  qwen = read(LLAMA, model_type='qwen2', sliding_window=9, max_window_layers=8)
  assert qwen.layer_windows == ()
  qwen = read(
    LLAMA,
    model_type='qwen2',
    sliding_window=9,
    max_window_layers=8,
    use_sliding_window=True,
  )
  assert qwen.layer_windows == (0,) * 8 + (9,) * 8


def test_ropes_by_the_keys_of_the_family():
  assert read(PYTHIA).rotary_size == 20  # rotary_pct 0.25 of 80 channels
  smollm3 = read(LLAMA, model_type='smollm3', num_hidden_layers=4)
  assert smollm3.layer_ropes == (0, 0, 0, 1)
  gemma3 = read(
    GEMMA2,
    model_type='gemma3_text',
    rope_scaling={'type': 'linear', 'factor': 8},
  )
  assert gemma3.layer_windows == ((4096,) * 5 + (0,)) * 4 + (4096,) * 2
  assert gemma3.ropes == (
    Rope(scaling='linear', factor=8.0),
    Rope(theta=10000.0),
  )


@pytest.mark.parametrize(
  'changes, words',
  [
    (
      {'model_type': 'mistral', 'sliding_window': 4, 'layer_types': ['x']},
      ["layer_types = ['x']", 'each layer'],
    ),
    ({'model_type': 'mistral', 'sliding_window': -4}, ['sliding_window = -4']),
    ({'rope_theta': 'big'}, ["rope_theta = 'big'"]),
    ({'rope_scaling': {'type': 'ntk'}}, ["'ntk'", 'llama3, yarn, longrope']),
    ({'rope_scaling': {'type': 'yarn'}}, ["'factor' is missing"]),
    ({'rope_scaling': [1]}, ['rope_scaling = [1]', 'object']),
    ({'rope_scaling': {'rope_type': 'llama3'}}, ["'factor' is missing"]),
    ({'no_rope_layer_interval': 'x'}, ["no_rope_layer_interval = 'x'"]),
    (
      {'no_rope_layer_interval': 4, 'no_rope_layers': 7},
      ['no_rope_layers = 7', 'a list'],
    ),
    (
      {'rope_parameters': {'full_attention': 5}},
      ['full_attention = 5', 'object'],
    ),
    (
      {'rope_parameters': {'sliding_attention': 'x'}},
      ["sliding_attention = 'x'", 'object'],
    ),
  ],
)
def test_refused_in_one_line(changes, words):
  published_configs.assert_refused(changes, words)
