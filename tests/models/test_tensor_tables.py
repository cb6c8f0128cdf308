"""tensor_tables: every parameter of every family has a place in its files."""

import dataclasses

import published_configs
import pytest

from dpo_jax.models import families
from dpo_jax.models.decoder_config import param_dims


@pytest.mark.parametrize('name', families.FAMILIES)
def test_every_parameter_has_its_tensor(name):
  config = published_configs.read(published_configs.of_family(name))
  config = dataclasses.replace(config, tied=False)
  table = families.FAMILIES[name].tensors
  assert set(param_dims(config)) <= set(table)
  # A tensor has the parameter's dimensions, in any order. Experts are one
  # tensor each, so the file lacks their dimension.
  for path, dims in param_dims(config).items():
    in_file = table[path].axes.replace(',', '').replace('1', '')
    in_file += 'E' if '{e}' in table[path].name else ''
    assert sorted(in_file) == sorted(dims.removeprefix('N')), path
