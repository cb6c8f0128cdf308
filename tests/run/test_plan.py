"""plan: closed forms, the compiler's own account, and the command."""

import pathlib

import jax
import pytest

from dpo_jax import config as config_lib
from dpo_jax import main as main_lib
from dpo_jax import sharding, types
from dpo_jax.run import inputs
from dpo_jax.run import job as job_lib
from dpo_jax.run import plan as plan_lib

ROOT = pathlib.Path(__file__).resolve().parents[2]
LOCAL = f'{ROOT}/experiments/quickstart.py:stage=dpo,runlocal'
LLAMA = {
  'model.preset': 'llama-3.1-8b',
  'model.vocab_size': '128256',
  'precision.compute': 'bfloat16',
}


@pytest.fixture(scope='module')
def job_of(tmp_path_factory):
  folder = tmp_path_factory.mktemp('plans')

  def make(overrides, num_devices=None):
    config = config_lib.load(LOCAL, overrides.items())
    config_lib.validate(config)
    data = inputs.read(config, folder, lambda line: None)
    mesh = num_devices and sharding.abstract_mesh(num_devices, **config.mesh)
    return job_lib.build(config, data, mesh)

  return make


def test_weights_and_moments_are_split_evenly(job_of):
  job = job_of(LLAMA | {'mesh.data': 1, 'mesh.fsdp': -1}, 256)
  got = plan_lib.memory(job)
  # 8,030,261,248 float32 parameters; 256 divides the width of every matrix.
  share = 8_030_261_248 * 4 // 256
  assert (got.parameters, got.reference, got.gradients) == (share,) * 3
  assert got.optimizer == 2 * share + 4  # Adam's two moments, and its count
  replicated = plan_lib.memory(job_of(LLAMA | {'mesh.data': -1}, 4))
  assert replicated.parameters == 256 * share
  # No copy of the reference's weights beside its cached scores.
  cached = plan_lib.memory(job_of({'reference.mode': 'cache'}, 4))
  assert cached.reference == 0 < cached.parameters


def test_an_adapter_shares_its_frozen_base(job_of):
  adapter = {'adapter.rank': 16, 'adapter.base': 'nf4'}
  got = plan_lib.memory(job_of(LLAMA | adapter, 1))
  # A layer of llama-3.1-8b: rank x (in + out) of q, k, v, o, gate, up, down.
  ends = 2 * (4096 + 4096) + 2 * (4096 + 1024) + 3 * (4096 + 14336)
  trained = 4 * 32 * 16 * ends
  kernels = 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336)
  # Half a byte per element and a float32 scale per 64 elements.
  base = kernels // 2 + kernels // 16 + 4 * (8_030_261_248 - kernels)
  assert got.parameters == trained + base
  assert (got.reference, got.gradients) == (0, trained)
  assert got.optimizer == 2 * trained + 4


def test_remat_and_tensor_parts_keep_less(job_of):
  kept = {}
  for remat in ('none', 'dots', 'full'):
    for tensor in (1, 4):
      job = job_of(
        {
          'model.preset': 'bench-cpu',
          'model.remat': remat,
          'mesh.tensor': tensor,
        },
        8,
      )
      rows = max(job.train_plan.row_counts) // (8 // tensor)
      activations = plan_lib.memory(job).activations
      kept[remat, tensor] = activations / rows
  assert kept['full', 1] < kept['dots', 1] < kept['none', 1]
  assert all(kept[remat, 4] < kept[remat, 1] for remat in ('none', 'dots'))


def test_the_compiler_says_the_same(job_of):
  # XLA's own account of the compiled step on 8 CPU devices. Measured once, on
  # bench-cpu: the plan was 0.79 to 1.04 of it for three remats, three meshes.
  job = job_of(
    {
      'model.preset': 'bench-cpu',
      'mesh.data': 1,
      'mesh.fsdp': -1,
      'data.row_length': 512,
    }
  )
  batch = job.train_plan.batch(0, job.inputs.train.store)
  placed = jax.tree.map(
    lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
    batch,
    sharding.batch_shardings(job.mesh, batch),
  )
  state = job.abstract
  reference = types.Frozen(weights=state.params)
  lowered = job.train_step.lower(state, reference, placed, job.hyper)
  compiled = lowered.compile().memory_analysis()
  planned = plan_lib.memory(job)
  arguments = planned.parameters + planned.optimizer + planned.reference
  assert compiled.argument_size_in_bytes == pytest.approx(
    arguments + planned.batch, rel=0.01
  )
  total = compiled.argument_size_in_bytes + compiled.temp_size_in_bytes
  assert total / 1.5 < sum(planned) < total * 1.5


def test_arithmetic_by_hand(job_of):
  job = job_of({'data.layout': 'packed'}, 1)
  got = plan_lib.step_flops(job)
  # 'tiny': D 64, 4 heads of 16, MLP 176, 2 layers, 259 tokens. 2 FLOPs per
  # weight and position, 4 H K per pair of positions; three passes of the policy
  # (forward, and twice that backward) and one of the reference.
  table, steps = job.inputs.train.store.table, job.num_steps
  tokens = attended = predicted = 0
  for t in range(steps):
    for i in job.train_plan.records(t):
      first, last = table.offsets[i : i + 2]
      for n in table.completion_lengths[first:last]:
        length = int(table.prompt_lengths[i] + n) - 1
        tokens += length
        attended += length * (length + 1) // 2
        predicted += int(n)
  layer = 2 * (4 * 64 * 64 + 3 * 64 * 176)
  forward = 2 * (layer * tokens + 4 * 64 * attended) + 2 * 64 * 259 * predicted
  assert got['flops_per_step'] == pytest.approx(4 * forward / steps)
  assert got['tokens_per_step'] == pytest.approx(tokens / steps)


def test_the_command_plans_for_devices_that_do_not_exist(capsys):
  argv = [f'--config={LOCAL}', '--mode=plan', '--plan_devices=256']
  argv += [f'--config.{k}={v}' for k, v in LLAMA.items()]
  fsdp = ['--config.mesh.data=1', '--config.mesh.fsdp=-1']
  assert main_lib.main([*argv, *fsdp]) == 0
  out = capsys.readouterr().out
  assert '8,030,261,248 parameters on 256 x device' in out
  assert 'plan for 256 device(s), data=1, fsdp=256, tensor=1' in out
  assert 'compute bfloat16' in out and 'GiB = parameters 0.117 + ' in out
  assert 'FLOPs per step' in out and 'packing_efficiency' in out
  assert main_lib.main([*argv, '--config.mesh.fsdp=3']) == 2
  error = capsys.readouterr().err
  assert error.startswith('config.mesh: data=-1, fsdp=3') and '256' in error
