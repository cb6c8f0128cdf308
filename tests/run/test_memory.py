"""memory: closed forms, and the compiler's own account."""

import jax
import pytest
from commands import LLAMA, build

from dpo_jax import sharding, types
from dpo_jax.run import memory, numerics


@pytest.fixture(scope='module')
def job_of(tmp_path_factory):
  folder = tmp_path_factory.mktemp('plans')

  def make(overrides, num_devices=None):
    sizes = {
      key.removeprefix('mesh.'): size
      for key, size in overrides.items()
      if key.startswith('mesh.')
    }
    mesh = num_devices and sharding.abstract_mesh(
      num_devices, **{'data': -1, 'fsdp': 1, 'tensor': 1} | sizes
    )
    return build(folder, overrides.items(), mesh)

  return make


def test_weights_and_moments_are_split_evenly(job_of):
  job = job_of(LLAMA | {'mesh.data': 1, 'mesh.fsdp': -1}, 256)
  got = memory.needed(job)
  # 8,030,261,248 float32 parameters; 256 divides the width of every matrix.
  share = 8_030_261_248 * 4 // 256
  assert (got.parameters, got.reference, got.gradients) == (share,) * 3
  assert got.optimizer == 2 * share + 4  # Adam's two moments, and its count
  halved = {'optim.moments_dtype': 'bfloat16', 'mesh.fsdp': 256}
  halved = memory.needed(job_of(LLAMA | halved, 256))
  # Half the first moment.
  assert halved == got._replace(optimizer=3 * share // 2 + 4)
  held = {'precision.reference': 'bfloat16', 'mesh.fsdp': 256}
  held = memory.needed(job_of(LLAMA | held, 256))
  assert held == got._replace(reference=share // 2)
  away = job_of(LLAMA | {'reference.offload': True, 'mesh.fsdp': 256}, 256)
  # The table of tokens, the head and the last norm stay during a step.
  ends = (2 * 128256 + 1) * 4096 * 4 // 256
  assert memory.needed(away) == got._replace(reference=ends)
  assert memory.on_host(away) == share
  replicated = memory.needed(job_of(LLAMA | {'mesh.data': -1}, 4))
  assert replicated.parameters == 256 * share
  # No copy of the reference's weights beside its cached scores.
  cached = memory.needed(job_of({'reference.mode': 'cache'}, 4))
  assert cached.reference == 0 < cached.parameters


def test_an_adapter_shares_its_frozen_base(job_of):
  adapter = {'adapter.rank': 16, 'adapter.base': 'nf4'}
  got = memory.needed(job_of(LLAMA | adapter, 1))
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
      activations = memory.needed(job).activations
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
  planned = memory.needed(job)
  arguments = planned.parameters + planned.optimizer + planned.reference
  assert compiled.argument_size_in_bytes == pytest.approx(
    arguments + planned.batch, rel=0.01
  )
  total = compiled.argument_size_in_bytes + compiled.temp_size_in_bytes
  assert total / 1.5 < sum(planned) < total * 1.5


def test_kept_logits_have_room_for_every_position(job_of):
  job = job_of(LLAMA, 1)
  positions = max(job.train_plan.row_counts) * job.train_plan.row_length
  three = 3 * 4 * 128256
  assert job.head_chunk == 1024 > positions / 4
  assert memory.needed(job).logits == three * min(1024, positions)
  # bfloat16, beside a chunk of float32 that is then all of them.
  kept = memory.needed(job, chunk=0)
  assert kept.logits == (three + 2 * 128256) * positions
  assert kept._replace(logits=0) == memory.needed(job)._replace(logits=0)


@pytest.mark.parametrize(('factor', 'chunk'), [(1.01, 0), (0.99, 1024)])
def test_auto_keeps_logits_where_they_fit(job_of, monkeypatch, factor, chunk):
  needed = sum(memory.needed(job_of({}), chunk=0))
  monkeypatch.setattr(numerics, 'room_for_logits', lambda *_: factor * needed)
  job = job_of({})
  assert job.head_chunk == chunk
  # The config stays as it was asked for: another device may choose otherwise.
  assert job.config.precision.head_chunk == 'auto'
