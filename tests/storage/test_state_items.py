"""state_items.py: a state goes to disk and comes back, under its old names."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dpo_jax import tree
from dpo_jax.storage import checkpoints, state_items
from dpo_jax.types import TrainState

STATE = TrainState(
  step=jnp.int32(3),
  params={'w': jnp.arange(4.0)},
  opt_state=(jnp.int32(3), {'w': jnp.ones(4)}),
  loss_state={'kto/kl': jnp.float32(0.5)},
  key=jax.random.key_data(jax.random.key(0)),
  skipped=jnp.int32(0),
)
COUNTS = np.array([1, 0, 2], np.int64)


def test_names_are_those_on_users_disks():
  # As train.py of commit dd04b5d saved them: older checkpoints must restore.
  items = state_items.items_of(STATE, COUNTS, {'w': jnp.zeros(4)})
  names = [name for name, _ in tree.flatten_with_names(items)]
  assert sorted(names) == [
    'data/trained',
    'loss_state/kto/kl',
    'opt_state/0',
    'opt_state/1/w',
    'params/w',
    'reference/w',
    'rng/key',
    'rng/step',
  ]
  assert items['rng'] == {'key': STATE.key, 'step': STATE.step}
  assert items['params'] is STATE.params and items['data']['trained'] is COUNTS


@pytest.mark.parametrize('reference', [None, {'w': jnp.zeros(4)}])
def test_what_is_saved_comes_back(tmp_path, reference):
  def stand_in(leaf):
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)

  shapes, moved = jax.tree.map(stand_in, (STATE, reference))
  with checkpoints.Checkpoints(tmp_path) as saver:
    saver.save(3, state_items.items_of(STATE, COUNTS, reference), {})
    saver.wait()
    wanted = state_items.items_of(shapes, COUNTS, moved)
    restored = state_items.state_of(saver.restore(3, wanted).items)
  # The count is in the record of a step, not among its items.
  expected = (STATE._replace(skipped=0), COUNTS, reference)
  assert jax.tree.structure(tuple(restored)) == jax.tree.structure(expected)
  assert tree.fingerprint(tuple(restored)) == tree.fingerprint(expected)
  restored.trained_counts[0] += 1  # the loop counts on in place
  with checkpoints.Checkpoints(tmp_path) as reader:
    wanted = {state_items.POLICY: shapes.params}
    items = reader.restore_latest(wanted, partial=True).items
  assert items['params']['w'].tolist() == STATE.params['w'].tolist()
