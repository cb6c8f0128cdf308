"""held_out: one set, whatever its batches, order and mesh; saved and read."""

import functools
import types as python_types

import jax
import numpy as np
import pytest
import toy

from dpo_jax import losses, scoring, sharding, train_step, types
from dpo_jax.data.batches import length_table, pipeline
from dpo_jax.run import evaluate, held_out
from dpo_jax.types import InputError

# Losses of a whole batch, of completions of one label, of lists, over tokens.
TERMS = ('kto', 'bco', 'aot', 'infonca', 'cpo', 'nll')
BETA = 0.3
SIDES = ('chosen', 'rejected')
ORDERS = {
  'as given': np.arange(20),
  'reversed': np.arange(20)[::-1],
  'shuffled': np.random.default_rng(3).permutation(20),
}


@functools.cache
def records():
  """Pairs, ranked lists and labelled answers; every 5th prompt is the same."""
  rng = np.random.default_rng(0)
  draw = lambda most: rng.integers(0, toy.VOCAB, rng.integers(1, most), 'i4')  # noqa: E731
  encoded, common = [], draw(5)
  for i in range(20):
    answers = tuple(draw(9) for _ in range(1 if i % 3 == 2 else 2 + i % 2))
    compared = tuple(
      types.Comparison(0, k, weight=0.5 + 0.1 * i)
      for k in range(1, len(answers))
    )
    known = {'labels': (i % 2 == 0,)} if i % 3 == 2 else {}
    prompt = common if i % 5 == 0 else draw(5)
    record = types.EncodedRecord(
      prompt, answers, compared, uid=f'{i:016x}', **known
    )
    encoded.append(record._replace(scores=tuple(rng.normal(size=len(answers)))))
  return encoded


@functools.cache
def eval_step(num_devices):
  """The jitted scores of the toy, on a mesh; one for all objectives here."""
  mesh = sharding.make_mesh(devices=jax.devices()[:num_devices])
  score = scoring.make_score(toy.ToyModel(), ('entropy',), chunk=7, mesh=mesh)
  step = train_step.make_eval_step(score, losses.make_objective(TERMS))
  return mesh, jax.jit(step, out_shardings=sharding.replicated(mesh))


def evaluated(
  terms=TERMS, options=(), *, order='as given', size=20, num_devices=1, policy=0
):
  """(metrics, Evaluated) of the records in an order, by batches of a size."""
  rows = [records()[i] for i in ORDERS[order]]
  mesh, step = eval_step(num_devices)
  plan = pipeline.make_plan(
    length_table.make_table(rows),
    seed=0,
    batch_size=size,
    row_length=24,
    shuffle=False,
    row_multiple=num_devices,
    mismatched_length=24,
  )

  def batches(t):
    batch = plan.batch(t, rows)
    # As many rows for every order: one program.
    missing = -(-size * 3 // 8) * 8 - batch.rows.tokens.shape[1]
    padded = [
      np.pad(
        field,
        ((0, 0), (0, missing), (0, 0)),
        constant_values=-1 if name == 'completion_id' else 0,
      )
      for name, field in batch.rows._asdict().items()
    ]
    batch = batch._replace(rows=types.Rows(*padded))
    return jax.device_put(batch, sharding.batch_shardings(mesh, batch))

  objective = losses.make_objective(terms, options=options)
  hyper = losses.default_hyper(dict.fromkeys(terms, 1.0), options, beta=BETA)
  job = python_types.SimpleNamespace(
    eval_step=step, objective=objective, eval_plan=plan, hyper=hyper
  )
  params, reference = jax.device_put(
    (
      jax.tree.map(lambda x: 0.3 * x, toy.params(policy)),
      types.Frozen(weights=jax.tree.map(lambda x: 0.3 * x, toy.params(5))),
    ),
    sharding.replicated(mesh),
  )
  # Every copy between host and device must be explicit, as in the loop.
  with jax.transfer_guard('disallow'):
    return evaluate.evaluate(job, params, reference, batches)


@functools.cache
def expected():
  return evaluated()


@pytest.mark.parametrize('num_devices', [1, 8])
@pytest.mark.parametrize('size', [1, 3, 8, 20])
@pytest.mark.parametrize('order', ORDERS)
def test_numbers_depend_on_the_set_alone(order, size, num_devices):
  wanted, saved = expected()
  got, other = evaluated(order=order, size=size, num_devices=num_devices)
  assert list(got) == list(wanted)
  for name, value in wanted.items():
    np.testing.assert_allclose(
      got[name], value, rtol=1e-6, atol=1e-6, err_msg=name
    )
  # The values of each comparison are the same too, in the order of the file.
  assert other.comparisons.keys() == saved.comparisons.keys()
  for name, values in saved.comparisons.items():
    np.testing.assert_allclose(
      np.sort(other.comparisons[name]), np.sort(values), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize('size', [3, 20])
def test_options_of_the_whole_batch_see_the_whole_set(size):
  options = ('beta_dpo', 'dr_dpo')
  wanted, _ = evaluated(('sigmoid',), options)
  got, _ = evaluated(('sigmoid',), options, order='shuffled', size=size)
  np.testing.assert_allclose(got['loss'], wanted['loss'], rtol=1e-6)


def log_s(x):
  return -np.logaddexp(0, -x)


def test_bco_and_nll_by_hand():
  wanted, saved = expected()
  pairs, labelled = saved.comparisons, saved.labelled
  ratio = np.concatenate(
    [pairs[f'policy_{s}'] - pairs[f'reference_{s}'] for s in SIDES]
    + [labelled['policy'] - labelled['reference']]
  )
  num = len(pairs['weight'])
  good = np.concatenate([np.ones(num), np.zeros(num), labelled['desirable']])
  weight = np.concatenate(
    [pairs['weight'], pairs['weight'], labelled['weight']]
  )
  up, down = weight * good, weight * (1 - good)
  reward = np.float64(np.float32(BETA)) * ratio
  by_hand = -np.average(log_s(reward), weights=up)
  by_hand -= np.average(log_s(-reward), weights=down)
  np.testing.assert_allclose(wanted['terms/bco'], by_hand, rtol=1e-12)
  # nll is over the tokens of the set, no mean of the batches' means.
  tokens = (pairs['weight'] * pairs['chosen_tokens']).sum()
  nll = -(pairs['weight'] * pairs['policy_chosen']).sum() / tokens
  np.testing.assert_allclose(wanted['terms/nll'], nll, rtol=1e-12)


@pytest.mark.parametrize('size', [1, 3, 8, 20])
def test_bco_is_2_ln_2_where_policy_and_reference_agree(size):
  got, _ = evaluated(('bco',), size=size, policy=5)
  np.testing.assert_allclose(got['loss'], 2 * np.log(2), rtol=1e-12)


def test_entropy_is_of_the_prompts_own_answers():
  got, saved = expected()
  whole = saved.whole
  own = whole['data.mismatched'] == 0
  assert 0 < own.sum() < len(own)
  np.testing.assert_allclose(
    got['entropy'],
    whole['policy.entropy'][own].sum(dtype=np.float64)
    / whole['policy.num_tokens'][own].sum(),
    rtol=1e-9,
  )


def test_what_is_saved_gives_the_same_bits_again():
  wanted, saved = expected()
  scored, state = held_out.from_arrays(saved.whole, 'eval_1.npz')
  assert state == {}
  hyper = losses.default_hyper(dict.fromkeys(TERMS, 1.0), beta=BETA)
  again, examples = held_out.measure(
    losses.make_objective(TERMS), jax.device_get(hyper), scored
  )
  assert again == wanted
  for name, values in examples.comparisons.items():
    np.testing.assert_array_equal(values, saved.comparisons[name])


def test_the_running_numbers_are_saved_and_read():
  state = {
    'bco': {'desirable': np.float32(0.5), 'num_desirable': np.float32(3)}
  }
  scored, _ = held_out.from_arrays(expected()[1].whole, 'x')
  arrays = held_out.to_arrays(scored, state)
  assert held_out.from_arrays(arrays, 'x')[1] == state


@pytest.mark.parametrize(
  'spoil',
  [
    lambda arrays: arrays.pop('policy.logps'),
    lambda arrays: arrays.pop('comparisons.loser'),
    lambda arrays: arrays.update({'policy.logps': np.zeros(3, np.float32)}),
    lambda arrays: arrays.update({'data.labels': np.zeros(3, np.int32)}),
    lambda arrays: arrays['comparisons.winner'].__iadd__(1000),
  ],
)
def test_arrays_that_do_not_fit_are_refused(spoil):
  arrays = {k: v.copy() for k, v in expected()[1].whole.items()}
  spoil(arrays)
  with pytest.raises(InputError, match='eval_1.npz: does not hold the scores'):
    held_out.from_arrays(arrays, 'eval_1.npz')


def zoo(**changes):
  """The scores of a batch of the toy as a set, its fields changed."""
  rng, batch = np.random.default_rng(0), toy.zoo()
  logps = [rng.normal(-9, 3, 24).astype(np.float32) for _ in range(2)]
  tokens = rng.integers(1, 9, 24).astype(np.float32)
  policy, reference = (types.CompletionScores(x, tokens) for x in logps)
  batch = batch._replace(rows=None, **changes)
  return held_out.HeldOut(policy, reference, batch)


def measure(name, scored):
  hyper = jax.device_get(losses.default_hyper({name: 1.0}))
  return held_out.measure(losses.make_objective((name,)), hyper, scored)[0]


def test_a_set_without_weight_has_no_loss():
  comparisons = toy.zoo().comparisons
  comparisons = comparisons._replace(weight=np.zeros(8, np.float32))
  scored = held_out.join([zoo(comparisons=comparisons)] * 2)
  assert measure('sigmoid', scored) == {}
  # They are no padding: they say which answer of a prompt is the best.
  assert len(scored.batch.comparisons.weight) == 16
  nothing = comparisons._replace(loser=comparisons.winner)
  scored = held_out.join([zoo(comparisons=nothing)] * 2)
  assert measure('sigmoid', scored) == {}
  assert len(scored.batch.comparisons.weight) == 1


@pytest.mark.parametrize('label', [0, 1])
def test_one_label_gives_half_of_bco_and_no_accuracy(label):
  none = toy.zoo().comparisons._replace(weight=np.zeros(8, np.float32))
  labels = np.full(24, label, np.int32)
  got = measure('bco', held_out.join([zoo(comparisons=none, labels=labels)]))
  sides = ('rejected', 'chosen')
  assert f'rewards/{sides[label]}' in got and got['loss'] > 0
  absent = (f'rewards/{sides[1 - label]}', 'rewards/accuracies')
  assert not {*absent, 'rewards/margins'} & got.keys()


def test_without_a_cpu_backend_the_numbers_are_those_of_the_devices(
  monkeypatch,
):
  wanted = measure('kto', zoo())
  devices = jax.local_devices()

  def no_cpu(backend=None):
    if backend == 'cpu':
      raise RuntimeError('Unknown backend cpu')
    return devices[3:]

  monkeypatch.setattr(jax, 'local_devices', no_cpu)
  assert measure('kto', zoo()) == wanted  # float64 on another device
  tpu = python_types.SimpleNamespace(platform='tpu')
  with monkeypatch.context() as patch:
    # A device that cannot compute in float64: float32 on the default one.
    patch.setattr(jax, 'local_devices', lambda backend=None: no_cpu(backend))
    patch.setattr(held_out, '_is_wide', lambda device: False)
    got = measure('kto', zoo())
  assert got.keys() == wanted.keys() and got != wanted
  for name, value in wanted.items():
    np.testing.assert_allclose(got[name], value, rtol=1e-4, atol=1e-5)
  assert not held_out._is_wide(tpu)


def test_the_defaults_of_the_process_stay():
  before = jax.config.jax_enable_x64
  measure('kto', zoo())
  assert jax.config.jax_enable_x64 == before
  assert jax.numpy.ones(1).dtype == np.float32
