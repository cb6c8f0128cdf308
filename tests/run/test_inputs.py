"""inputs: a tokenizer that does not fit the model, through the real command."""

import numpy as np
import pytest
from commands import CONFIG, refuse, write_good

from dpo_jax import main as main_lib
from dpo_jax import tree
from dpo_jax.models import presets
from dpo_jax.models.decoder_config import param_dims
from dpo_jax.storage import hf_checkpoint


def test_a_vocabulary_larger_than_the_models_is_refused(tmp_path, capsys):
  arguments = [write_good(tmp_path), '--config.model.vocab_size=100']
  error = refuse(arguments, tmp_path, capsys)
  assert 'config.tokenizer' in error and '100' in error


@pytest.fixture
def model_of_300(tmp_path):
  # The byte tokenizer has 256 + 3 tokens.
  config = presets.get('tiny', vocab_size=300)
  leaves = {
    name: np.zeros([config.sizes[d] for d in dims], np.float32)
    for name, dims in param_dims(config).items()
  }
  hf_checkpoint.save(tmp_path / 'm', tree.unflatten_names(leaves), config)
  return ['--config.model.preset=', f'--config.model.init_from={tmp_path}/m']


def test_a_vocabulary_larger_than_the_tokenizer_is_refused(
  tmp_path, capsys, model_of_300
):
  arguments = [write_good(tmp_path), *model_of_300]
  error = refuse(arguments, tmp_path, capsys)
  assert "'byte' has 259 tokens, the model 300" in error
  assert 'model.allow_larger_vocab=True' in error
  allowed = [*arguments, '--config.model.allow_larger_vocab']
  assert main_lib.main([CONFIG, '--mode=plan', *allowed]) == 0


def test_a_coefficient_without_experts_is_refused(tmp_path, capsys):
  arguments = [write_good(tmp_path), '--config.model.router_aux_coef=0.1']
  error = refuse(arguments, tmp_path, capsys)
  assert error.startswith('config.model.router_aux_coef: 0.1 is not used')
