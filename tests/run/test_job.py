"""job: batches, state and hyper-parameters on the devices, as configured."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import EXPERIMENT, build

from dpo_jax import config as config_lib
from dpo_jax import losses
from dpo_jax.run import job as job_lib
from dpo_jax.run import weights
from dpo_jax.types import InputError


@pytest.fixture(scope='module')
def job(tmp_path_factory):
  return build(tmp_path_factory.mktemp('job'), [('mesh.fsdp', '2')])


def test_a_batch_on_the_devices_is_the_plans(job):
  part = job.inputs.train
  placed = job_lib.batch_source(job, job.train_plan, part)(1)
  host = job.train_plan.batch(1, part.store)
  jax.tree.map(np.testing.assert_array_equal, placed, host)
  # Rows are split over data x fsdp, everything else is replicated.
  assert placed.rows.tokens.sharding.shard_shape((1, 8, 4)) == (1, 1, 4)
  assert placed.labels.sharding.is_fully_replicated


def test_the_state_lies_where_it_is_said_to(job):
  state = job_lib.initial_state(job, weights.initial(job))
  where = jax.tree.map(lambda leaf: leaf.sharding, state)
  assert jax.tree.all(jax.tree.map(lambda a, b: a == b, where, job.shardings))
  shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state)
  said = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), job.abstract)
  assert shapes == said
  assert int(state.step) == 0


def test_traced_numbers_are_the_configs(job):
  assert float(job.hyper['beta']) == pytest.approx(job.config.loss.beta)
  assert set(job.hyper) == {
    'beta',
    'label_smoothing',
    'learning_rate',
    'weight/sigmoid',
  }
  assert all(x.dtype == jnp.float32 and not x.shape for x in job.hyper.values())


def test_epochs_become_whole_updates(tmp_path):
  by_epochs = [('train.num_steps', '0'), ('train.num_epochs', '0.01')]
  job = build(tmp_path, by_epochs)
  prompts = 0.01 * len(job.inputs.train.indices)
  assert job.num_steps == int(prompts // 8) > 0
  few = [('train.num_steps', '0'), ('train.num_epochs', '0.0001')]
  with pytest.raises(InputError, match='num_epochs.*less than one update of 8'):
    build(tmp_path, few)


def test_a_resolved_config_has_the_defaults_of_its_losses():
  config = config_lib.load(
    EXPERIMENT,
    [
      ('loss.terms.sigmoid', '0'),
      ('loss.terms.simpo', '2'),
      ('loss.beta', '3'),
    ],
  )
  resolved = config_lib.resolve(config)['loss']
  assert resolved['terms'] == {'simpo': 2.0}
  assert resolved['beta'] == 3
  assert resolved['gamma'] == losses.get('simpo').hyper['gamma']
  assert resolved['alpha'] is None  # no chosen loss has one


def test_the_default_mesh_asks_for_no_device(monkeypatch):
  config = config_lib.load(EXPERIMENT)
  monkeypatch.setattr(jax, 'devices', lambda: pytest.fail('asked for devices'))
  job_lib.check_mesh(config)
