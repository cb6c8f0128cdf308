"""slices: names of devices, as Google and NVIDIA sell them."""

import pytest

from dpo_jax.run import slices
from dpo_jax.types import InputError


# From Google's pages of v4, v5e, v5p and v6e: v4 and v5p count TensorCores.
@pytest.mark.parametrize(
  ('text', 'num_devices', 'topology'),
  [
    ('256', 256, ''),
    ('v5e-1', 1, '1x1'),
    ('v5e-8', 8, '2x4'),
    ('v5e-16', 16, '4x4'),
    ('V6E-256', 256, '16x16'),
    ('v5p-8', 4, '2x2x1'),
    ('v5p-32', 16, '2x2x4'),
    ('v5p-128', 64, '4x4x4'),
    ('v4-512', 256, '4x8x8'),
    ('v5p:2x4x8', 64, '2x4x8'),
    ('h100x8', 8, ''),
  ],
)
def test_names_of_devices(text, num_devices, topology):
  planned = slices.parse(text)
  assert (planned.num_devices, planned.topology) == (num_devices, topology)


@pytest.mark.parametrize(
  ('text', 'words'),
  [
    ('v5e-24', 'v5e-16 or v5e-32'),
    ('v5e-2', 'v5e-1'),
    ('v5p:8x8', '3 sizes'),
    ('v5ex16', 'not how'),
    ('h100-8', 'not how'),
    ('b300x8', 'known: '),
    ('v5e-', 'known: '),
    ('v5e:4x0', 'size'),
    ('-3', 'e.g. 256'),
    ('h100x' + '9' * 5000, 'h100'),
  ],
)
def test_other_names_are_refused(text, words):
  with pytest.raises(InputError, match='--plan_devices: .*fix: ') as error:
    slices.parse(text)
  assert words in str(error.value)


@pytest.mark.parametrize(
  ('text', 'words'), [('h100x8', 'TPU slices'), ('v5e-16', 'pip install')]
)
def test_xla_compiles_for_slices_with_libtpu(text, words, monkeypatch):
  monkeypatch.setattr(slices.importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(InputError, match='--compile: ') as error:
    slices.describe_devices(slices.parse(text))
  assert words in str(error.value)
