"""weights: adapters through the real command; saved, continued, exported."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_train

from dpo_jax import config as config_lib
from dpo_jax import tree
from dpo_jax.run import inputs, weights
from dpo_jax.run import job as job_lib
from dpo_jax.storage import checkpoints

ADAPTED = (
  'adapter.rank=2',
  'adapter.alpha=8',
  'adapter.init=a_zero',
  'adapter.targets=query,value,up',
  'mesh.fsdp=2',
  'mesh.tensor=2',
  'optim.learning_rate=0.02',
  'train.num_steps=4',
  'train.microbatches=2',
  'train.save_every=1',
  'train.keep_checkpoints=9',
)
LN2 = np.log(2)


def saved(workdir, step, items=('params', 'opt_state')):
  with checkpoints.Checkpoints(workdir / 'checkpoints') as saver:
    return saver.restore(step, dict.fromkeys(items), partial=True).items


def scores(path):
  with np.load(path) as file:
    return {k: file[k] for k in ('policy_chosen', 'policy_rejected')}


@pytest.fixture(scope='module')
def adapted(tmp_path_factory):
  """A run of four updates of an adapter, on a mesh of 2 x 2 x 2."""
  workdir = tmp_path_factory.mktemp('adapted') / 'run'
  assert test_train.train(workdir, *ADAPTED) == 0
  return workdir


def test_it_begins_at_ln2_and_learns(adapted):
  train, held = (test_train.lines(adapted, s) for s in ('train', 'eval'))
  assert abs(held[0]['loss'] - LN2) < 1e-6
  assert abs(train[1]['loss'] - LN2) < 1e-6
  assert train[1]['grad_norm'] > 0
  assert train[4]['loss'] < 0.67  # after 32 pairs; 0.6577 when written


def test_a_checkpoint_holds_the_adapter_and_its_moments_only(adapted):
  items = saved(adapted, 4)
  # quickstart's decoder: 2 layers, width 64, 4 heads of 16, MLP of 176.
  into, sizes = 2 * 64 * 2, {'query': 64, 'value': 64, 'up': 176}
  expected = sum(into + 2 * 2 * out for out in sizes.values())
  params = tree.flatten_with_names(items['params'])
  assert {name.split('/')[-2] for name, _ in params} == set(sizes)
  assert sum(leaf.size for _, leaf in params) == expected
  moments = sum(x.size for x in jax.tree.leaves(items['opt_state']))
  assert moments <= 2 * expected + 2
  # A starts at zero, so B has no gradient in the first update; B is random.
  first = dict(tree.flatten_with_names(saved(adapted, 1)['params']))
  assert all(np.any(leaf) for leaf in first.values())


def test_the_trajectory_does_not_depend_on_the_mesh(adapted, tmp_path):
  alike = (*ADAPTED, 'mesh.fsdp=1', 'mesh.tensor=1', 'train.num_steps=2')
  assert test_train.train(tmp_path / 'run', *alike) == 0
  unsharded = test_train.lines(tmp_path / 'run', 'train')
  sharded = test_train.lines(adapted, 'train')
  for step in (1, 2):
    for name in ('loss', 'grad_norm', 'rewards/margins'):
      np.testing.assert_allclose(
        unsharded[step][name], sharded[step][name], rtol=1e-3, atol=1e-6
      )


def test_a_killed_run_goes_on_bit_for_bit(adapted, tmp_path, monkeypatch):
  workdir = tmp_path / 'run'
  test_train.killed_at(3, monkeypatch, workdir, *ADAPTED)
  assert test_train.train(workdir, *ADAPTED) == 0
  assert test_train.state(workdir) == test_train.state(adapted)
  for split in ('train', 'eval'):
    assert test_train.lines(workdir, split) == test_train.lines(adapted, split)


def test_exports_score_as_the_adapter_does(adapted, tmp_path, capsys):
  merged, peft = tmp_path / 'merged', tmp_path / 'peft'

  def command(workdir, mode, *overrides, to=None):
    words = test_train.arguments(workdir, *overrides, mode=mode)
    words += [f'--export_to={to}'] if to else []
    return test_train.main_lib.main(words)

  assert command(adapted, 'export', *ADAPTED, to=merged) == 0
  as_peft = (*ADAPTED, 'adapter.export=peft')
  assert command(adapted, 'export', *as_peft, to=peft) == 0
  assert 'the adapter of step 4' in capsys.readouterr().out
  adapter_config = json.loads((peft / 'adapter_config.json').read_text())
  assert (adapter_config['r'], adapter_config['lora_alpha']) == (2, 8)
  trained = scores(adapted / 'per_example' / 'eval_4.npz')
  start = (f'model.init_from={merged}', 'model.preset=', 'tokenizer=byte')
  sources = {'merged': start, 'peft': (*ADAPTED, f'adapter.init_from={peft}')}
  sources['peft'] = tuple(
    o for o in sources['peft'] if not o.startswith('adapter.init=')
  )
  for name, overrides in sources.items():
    assert command(tmp_path / name[:1], 'evaluate', *overrides) == 0
    again = scores(tmp_path / name[:1] / 'per_example' / 'evaluate.npz')
    for key, values in trained.items():
      np.testing.assert_allclose(again[key], values, rtol=1e-5, atol=1e-5)
  # A given adapter is the reference too: the initial policy has loss ln 2.
  printed = capsys.readouterr().out.strip().splitlines()[-1]
  assert abs(json.loads(printed.split(': ', 1)[1])['loss'] - LN2) < 1e-6


def test_a_run_and_a_peft_folder_are_models_by_themselves(
  adapted, tmp_path, capsys
):
  # Both as the merged weights: the scores of the run's last evaluation.
  hf, base = tmp_path / 'hf', ('model.preset=', 'tokenizer=byte')
  first = test_train.arguments(tmp_path / 'start', mode='export')
  assert test_train.main_lib.main([*first, f'--export_to={hf}']) == 0
  peft = tmp_path / 'peft'
  changed = tuple(o for o in ADAPTED if not o.startswith('train.num_steps'))
  run = tmp_path / 'run'
  trained = (*changed, *base, f'model.init_from={hf}', 'train.num_steps=2')
  assert test_train.train(run, *trained) == 0
  words = test_train.arguments(
    run, *trained, 'adapter.export=peft', mode='export'
  )
  assert test_train.main_lib.main([*words, f'--export_to={peft}']) == 0
  expected = scores(run / 'per_example' / 'eval_2.npz')
  for folder in (run, peft):
    workdir = tmp_path / f'of_{folder.name}'
    overrides = (*base, f'model.init_from={folder}')
    assert test_train.train(workdir, *overrides, mode='evaluate') == 0
    again = scores(workdir / 'per_example' / 'evaluate.npz')
    for key, values in expected.items():
      np.testing.assert_allclose(again[key], values, rtol=1e-5, atol=1e-5)
  # An adapter of random weights says what to give.
  overrides = (*ADAPTED, 'adapter.export=peft')
  words = test_train.arguments(adapted, *overrides, mode='export')
  assert test_train.main_lib.main([*words, f'--export_to={tmp_path}/lost']) == 0
  capsys.readouterr()
  overrides = (*base, f'model.init_from={tmp_path}/lost')
  assert test_train.train(tmp_path / 'never', *overrides) == 2
  error = capsys.readouterr().err
  assert 'it names no base; fix: give its base as model.init_from' in error
  assert not (tmp_path / 'never').exists()


def built(tmp_path, **overrides):
  path = f'{test_train.ROOT}/experiments/quickstart.py:stage=dpo,runlocal'
  overrides = {k.replace('__', '.'): str(v) for k, v in overrides.items()}
  config = config_lib.load(path, overrides.items())
  data = inputs.read(config, tmp_path, log=lambda _: None)
  return job_lib.build(config, data)


@pytest.mark.parametrize('base', ['float32', 'int8'])
def test_the_reference_is_the_base_itself(tmp_path, base):
  job = built(tmp_path, adapter__rank=2, adapter__base=base)
  before = {id(x) for x in jax.live_arrays()}
  frozen = weights.frozen(job, with_reference=True)
  assert frozen.reference() is frozen.base
  new = [x for x in jax.live_arrays() if id(x) not in before]
  held = sum(x.nbytes for x in new)
  # 2 layers, kernels 4 x 64 x 64 + 3 x 64 x 176; int8 has a scale per output.
  kernels = 2 * (4 * 64 * 64 + 3 * 64 * 176)
  num_params = sum(x.size for x in jax.tree.leaves(job.weights.abstract))
  rest = 4 * (num_params - kernels)
  scales = 2 * (3 * 64 + 64 + 2 * 176 + 64) * 4
  expected = {'float32': 4 * kernels, 'int8': kernels + scales}[base]
  assert held == rest + expected + 4  # and the adapter's scale


def test_a_moving_reference_has_whole_weights(tmp_path):
  # tr_dpo: a mean of adapters is not the adapter of the mean.
  options = {'loss__tr_dpo': True, 'loss__tr_tau': 2, 'loss__tr_alpha': 0.25}
  job = built(tmp_path, adapter__rank=2, **options)
  frozen = weights.frozen(job, with_reference=True)
  adapter = jax.tree.map(
    lambda leaf: jnp.full(leaf.shape, 0.1), job.abstract.params
  )
  step = jax.device_put(jnp.int32(2), job.shardings.step)
  first = jax.device_get(frozen.base)
  moved = job.move_reference(frozen, adapter, step, job.hyper)
  assert moved.adapter is None and moved.base is frozen.base
  # A B = 2 x 0.1 x 0.1 everywhere, scale 16 / 2, a quarter of it.
  for name, leaf in tree.flatten_with_names(moved.weights):
    node = dict(tree.flatten_with_names(first))[name]
    change = 0.25 * 8 * 0.02 if name.endswith('kernel') else 0.0
    np.testing.assert_allclose(leaf, node + change, rtol=1e-5, atol=1e-6)
  np.testing.assert_array_equal(  # the donated arrays were not the base's
    frozen.base['embed']['embedding'], first['embed']['embedding']
  )
