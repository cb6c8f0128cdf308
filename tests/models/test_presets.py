"""presets: numbers of parameters are those of the published models."""

import math

import pytest

from dpo_jax.models import presets
from dpo_jax.models.decoder_config import param_dims
from dpo_jax.types import InputError

# Totals that Hugging Face shows for the safetensors files; a tied head counts
# once. gpt2-large, gpt-j-6b, pythia: sums over the tensors of their files.
PUBLISHED = {
  'gpt2-large': 774_030_080,
  'gpt-j-6b': 6_050_882_784,
  'pythia-1.4b': 1_414_647_808,
  'pythia-2.8b': 2_775_208_960,
  'pythia-6.9b': 6_857_302_016,
  'llama-3.1-8b': 8_030_261_248,
  'llama-3.2-1b': 1_235_814_400,
  'llama-3.2-3b': 3_212_749_824,
  'tulu3-8b': 8_030_326_784,
  'mistral-7b': 7_241_732_096,
  'qwen2.5-0.5b': 494_032_768,
  'qwen2.5-1.5b': 1_543_714_304,
  'qwen2.5-3b': 3_085_938_688,
  'qwen2.5-7b': 7_615_616_512,
  'qwen2.5-14b': 14_770_033_664,
  'qwen2.5-32b': 32_763_876_352,
  'qwen2.5-72b': 72_706_203_648,
  'qwen3-0.6b': 596_049_920,
  'qwen3-1.7b': 1_720_574_976,
  'qwen3-4b': 4_022_468_096,
  'qwen3-8b': 8_190_735_360,
  'qwen3-14b': 14_768_307_200,
  'qwen3-32b': 32_762_123_264,
  'qwen3-30b-a3b': 30_532_122_624,
  'gemma-2-2b': 2_614_341_888,
  'gemma-2-9b': 9_241_705_984,
}


def test_every_public_model_is_counted():
  assert set(presets.names()) - set(PUBLISHED) == {'tiny', 'bench-cpu'}


@pytest.mark.parametrize('name', PUBLISHED)
def test_number_of_parameters(name):
  config = presets.get(name)
  sizes = config.sizes
  shapes = [[sizes[d] for d in dims] for dims in param_dims(config).values()]
  assert sum(map(math.prod, shapes)) == PUBLISHED[name]


def test_what_the_number_does_not_show():
  assert presets.get('mistral-7b').layer_windows == (4096,) * 32
  assert presets.get('gpt-j-6b').rotary_size == 64
  assert presets.get('pythia-2.8b').rotary_size == 20  # a quarter of 80
  assert presets.get('gemma-2-9b').query_scalar == 256
  assert presets.get('llama-3.1-8b').ropes[0].factor == 8.0
  assert presets.get('llama-3.2-3b').ropes[0].factor == 32.0
  assert presets.get('qwen2.5-7b').norm_eps == 1e-6
  assert presets.get('qwen2.5-14b').norm_eps == 1e-5
  assert presets.get('qwen3-30b-a3b').experts_per_token == 8


def test_the_vocabulary_can_be_another():
  assert presets.get('tiny', vocab_size=77).vocab_size == 77
  assert presets.get('qwen3-8b', vocab_size=259).vocab_size == 259


def test_an_unknown_name_is_refused():
  with pytest.raises(InputError, match="no preset 'tniy'.*'tiny'"):
    presets.get('tniy')
