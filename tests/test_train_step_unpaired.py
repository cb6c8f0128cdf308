"""train_step, eval_step: unpaired and ranked data, and their refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from dpo_jax import losses, metrics, optim, scoring, train_step, types
from dpo_jax.train_step import init_state
from dpo_jax.types import Comparisons, InputError

SCHEDULE = optim.make_schedule('constant', num_steps=10)
EMPTY = Comparisons(
  *(np.zeros(8, dtype) for dtype in ('int32', 'int32', 'float32', 'float32'))
)


def unpaired():
  """The first two completions of each prompt are labelled, none compared."""
  labels = np.tile([1, 0, -1], 8).astype(np.int32)
  return toy.zoo()._replace(comparisons=EMPTY, labels=labels)


def train(name, batch, num_steps, **values):
  """(state, metrics of every step)."""
  objective = losses.make_objective((name,))
  score = scoring.make_score(toy.ToyModel())
  optimizer = optim.make_optimizer('rmsprop')
  step = jax.jit(
    train_step.make_train_step(score, objective, optimizer, SCHEDULE)
  )
  params, reference = toy.params(), toy.reference()
  state = init_state(params, optimizer, 0, objective.init_state())
  hyper = losses.default_hyper({name: 1.0}, **values)
  hyper['learning_rate'] = jnp.float32(1e-3)
  trace = []
  for _ in range(num_steps):
    state, sums = step(state, reference, batch, hyper)
    trace.append(metrics.means(jax.device_get(sums)))
  return state, trace


@pytest.mark.parametrize('name', ['kto', 'bco', 'infonca'])
def test_data_without_comparisons_trains(name):
  _, trace = train(name, unpaired(), 5)
  losses_seen = [float(step['loss']) for step in trace]
  assert losses_seen == sorted(losses_seen, reverse=True)
  first, last = trace[0], trace[-1]
  if name != 'infonca':
    # At step 0 every reward is 0; later those of desirable answers are larger.
    assert first['rewards/margins'] == 0 and last['rewards/margins'] > 0
    assert last['rewards/accuracies'] > 0.6


def test_bco_state_is_carried():
  state, _ = train('bco', unpaired(), 3, beta=0.5)
  assert state.loss_state['bco']['num_desirable'] == 3 * 8
  assert state.loss_state['bco']['desirable'] > 0
  assert state.loss_state['bco']['undesirable'] < 0


def test_kto_without_mismatched_completions_is_refused():
  with pytest.raises(InputError, match="another prompt's answer"):
    train('kto', unpaired()._replace(mismatched=None), 1)


@pytest.mark.parametrize(
  'terms,options', [(('tdpo1',), ()), (('sigmoid',), ('ld_alpha',))]
)
def test_what_the_cache_does_not_hold_is_refused(terms, options):
  objective = losses.make_objective(terms, options=options)
  pair = 'distributions' in objective.needs
  make = scoring.make_pair_score if pair else scoring.make_score
  eval_step = train_step.make_eval_step(make(toy.ToyModel()), objective)
  plain = scoring.make_score(toy.ToyModel())
  batch = toy.zoo()
  rows = jax.tree.map(lambda x: x[0], batch.rows)
  cached = batch._replace(reference=plain(toy.params(5), rows, 24))
  with pytest.raises(InputError, match='precomputed scores do not serve'):
    eval_step(toy.params(), types.Frozen(), cached)


def test_reference_free_losses_report_rewards_without_a_reference():
  _, trace = train('simpo', toy.zoo(), 1)
  assert 'kl' not in trace[0]  # there is no reference to drift from
  pairs_reward = trace[0]['rewards/chosen']
  assert pairs_reward < -1  # beta times a mean log-probability, not a ratio
