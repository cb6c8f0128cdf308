"""plan: arithmetic by hand, and the command."""

import pytest
from commands import EXPERIMENT, LLAMA, build

from dpo_jax import main as main_lib
from dpo_jax import sharding
from dpo_jax.run import plan as plan_lib


def test_arithmetic_by_hand(tmp_path):
  mesh = sharding.abstract_mesh(1, data=-1, fsdp=1, tensor=1)
  job = build(tmp_path, [('data.layout', 'packed')], mesh)
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
  argv = [f'--config={EXPERIMENT}', '--mode=plan', '--plan_devices=256']
  argv += [f'--config.{k}={v}' for k, v in LLAMA.items()]
  fsdp = ['--config.mesh.data=1', '--config.mesh.fsdp=-1']
  assert main_lib.main([*argv, *fsdp]) == 0
  out = capsys.readouterr().out
  assert '8,030,261,248 parameters on 256 x device' in out
  assert 'plan for 256 device(s), data=1, fsdp=256, tensor=1' in out
  assert 'head: chunks of 4,096 positions' in out
  assert 'GiB if they are kept for the backward pass' in out
  assert 'compute bfloat16' in out and 'GiB = parameters 0.117 + ' in out
  assert 'FLOPs per step' in out and 'packing_efficiency' in out
  assert main_lib.main([*argv, '--config.mesh.fsdp=3']) == 2
  error = capsys.readouterr().err
  assert error.startswith('config.mesh: data=-1, fsdp=3') and '256' in error


def test_rented_devices_have_a_kernel_a_size_and_a_peak(capsys):
  argv = [f'--config={EXPERIMENT}', '--mode=plan', '--plan_devices=v5e-16']
  argv += [f'--config.{k}={v}' for k, v in LLAMA.items()]
  argv += ['--config.mesh.data=1', '--config.mesh.fsdp=-1']
  argv += ['--config.model.remat=full']
  assert main_lib.main(argv) == 0
  out = capsys.readouterr().out
  # What a v5e runs, although this machine has none.
  assert (
    'attention: splash, to be proven' in out
    and 'chunks of 2,048 positions' in out
  )
  assert '16 x v5e (4x4): fits 15.8 GiB' in out
  assert 'mesh to choose: data=1 fsdp=16, 1' in out
  assert main_lib.main([*argv[:-3], '--config.mesh.fsdp=1']) == 0
  assert 'v5e (4x4): does not fit 15.8 GiB' in capsys.readouterr().out


@pytest.mark.parametrize('kernel', ['auto', 'tokamax'])
def test_the_kernel_of_a_gpu_is_planned_without_one(capsys, kernel):
  argv = [f'--config={EXPERIMENT}', '--mode=plan', '--plan_devices=h100x8']
  argv += [f'--config.{k}={v}' for k, v in LLAMA.items()]
  argv += ['--config.mesh.data=1', '--config.mesh.fsdp=-1']
  argv += [f'--config.model.attention={kernel}']
  assert main_lib.main(argv) == 0
  out = capsys.readouterr().out
  name = 'triton' if kernel == 'auto' else kernel
  assert f'attention: {name}, to be proven' in out
  assert '8 x h100' in out
