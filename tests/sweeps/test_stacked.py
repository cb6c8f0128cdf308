"""stacked: points in one program equal points one after another."""

import experiment
import jax
import pytest
import runs

from dpo_jax import main as main_lib
from dpo_jax import train

# Eight variants that differ in weights of the loss, beta, rate and seed.
VARIANTS = """

def sweep_eight():
  for i in range(8):
    yield '', {
      'loss.terms.sigmoid': 1.0 + 0.25 * (i % 2),
      'loss.beta': 0.1 + 0.1 * (i % 4),
      'optim.learning_rate': 1e-3 * (1 + i % 3),
      'seed': i % 2,
    }
"""


def close(first, second, tolerance):
  """Asserts that the metrics of two runs agree."""
  for one, other in zip(runs.metrics(first), runs.metrics(second), strict=True):
    assert one.keys() == other.keys()
    # Where all rewards are equal, as before the first update, rounding decides
    # which is larger.
    is_tie = abs(one['rewards/margins']) < 1e-5
    for name, value in one.items():
      if is_tie and name == 'rewards/accuracies':
        continue
      # A point of a stack is on one device, one by itself on all eight, whose
      # number the rows are padded to.
      if name == 'packing_efficiency':
        continue
      wanted = (
        value
        if isinstance(value, str)
        else pytest.approx(value, rel=tolerance, abs=tolerance)
      )
      assert other[name] == wanted, (first.name, one['step'], name)


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
  """{mode: folder} of the same eight points."""
  root = tmp_path_factory.mktemp('stacked')
  path = experiment.write(root)
  with open(path, 'a') as file:
    file.write(VARIANTS)
  made = {}
  for mode in ('loop', 'map', 'vmap'):
    made[mode] = root / mode
    assert main_lib.main(command(path, made[mode], mode)) == 0
  return made


def command(path, folder, mode):
  """The eight points: a small adapter each, on one base."""
  return [
    *('--mode=sweep', f'--config={path}', '--sweep.name=eight'),
    *(f'--workdir={folder}', f'--sweep.mode={mode}'),
    *('--config.adapter.rank=2', '--config.reference.mode=adapter_off'),
  ]


@pytest.mark.slow
@pytest.mark.parametrize('mode', ['map', 'vmap'])
def test_all_ways_agree(folders, mode):
  names = sorted(p.name for p in folders['loop'].glob('seed*'))
  names = names or sorted(p.parent.name for p in folders['loop'].glob('*/DONE'))
  assert len(names) == 8
  for name in names:
    close(folders['loop'] / name, folders[mode] / name, 1e-5)
    assert (folders[mode] / name / 'DONE').exists()


def test_a_device_holds_the_base_once(tmp_path, monkeypatch):
  held, evaluate = [], train.evaluate_run

  def spied(run, state, reference, step):
    table = reference.base['embed']['embedding'].shape
    buffers = {
      (shard.device.id, shard.data.unsafe_buffer_pointer())
      for array in jax.live_arrays()
      if array.shape == table
      for shard in array.addressable_shards
    }
    held.append(sorted(device for device, _ in buffers))
    return evaluate(run, state, reference, step)

  monkeypatch.setattr(train, 'evaluate_run', spied)
  path = experiment.write(tmp_path)
  arguments = command(path, tmp_path / 'sweep', 'vmap')
  # Four policies of one base, on a device each.
  arguments[2:3] = ['--sweep.loss.beta=0.1,0.2,0.3,0.4']
  assert main_lib.main([*arguments, '--config.train.num_steps=1']) == 0
  assert held == [[0, 1, 2, 3]] * 4 * 2
