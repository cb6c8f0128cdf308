"""config.json, index and adapter_config.json, spoilt: read, or one line."""

import mutated_models
import pytest

from dpo_jax.storage import initial_weights


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  root = tmp_path_factory.mktemp('spoilt')
  mutated_models.write(root)
  return root


@pytest.mark.parametrize('name', mutated_models.FILES)
def test_a_spoilt_file_is_read_or_refused_in_one_line(folder, name):
  counts, failures = mutated_models.run(folder, name, 150)
  assert not failures, failures[0]
  assert counts['refused'] > 40
  initial_weights.check(str(folder / 'm'), mutated_models.CONFIG)
