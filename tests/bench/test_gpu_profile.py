"""gpu_profile: times by kernel and by group, from jax's own profile."""

import jax
import jax.numpy as jnp
import pytest

from dpo_jax.bench import gpu_page, gpu_profile

# Names as NVIDIA's libraries and XLA give them.
NAMES = {
  'nvjet_hsh_192x192_64x4_2x1_v_bz_coopB_TNT': 'matmul',
  'cutlass_80_wmma_tensorop_bf16_s161616gemm': 'matmul',
  'cudnn_generated_fort_native_sdpa_sm90_flash_fprop': 'attention',
  'MemcpyD2D': 'copies',
  'input_scatter_fusion': 'scatter and gather',
  'loop_add_multiply_fusion': 'fused',
  'ncclDevKernel': 'other',
}


@pytest.mark.parametrize('name', NAMES)
def test_a_kernel_has_a_group(name):
  assert gpu_profile.group(name) == NAMES[name]


def test_calls_are_summed_by_kernel_and_by_group():
  events = [('loop_add_fusion.3', 1.0), ('loop_add_fusion_4', 2.0)]
  result = gpu_profile.table([*events, ('nvjet_x', 6.0)], wall_ms=12.0)
  assert [(r['name'], r['calls'], r['ms']) for r in result['kernels']] == [
    ('nvjet_x', 1, 6.0),
    ('loop_add_fusion', 2, 3.0),
  ]
  assert result['groups'][1] == {'name': 'fused', 'ms': 3.0, 'share': 1 / 3}
  entry = {'title': '1.3B', 'kind': 'profile', 'status': 'done'}
  page = gpu_page.page({'stages': {'profile': entry | {'result': result}}})
  assert 'One step took 12.0 ms, kernels of it 9.0 ms (75%' in page
  assert '| `nvjet_x` | matmul | 1 | 6.00 | 66.7% |' in page


def test_a_profile_of_a_program_is_read(tmp_path):
  run = jax.jit(lambda x: (jnp.tanh(x @ x) @ x).sum())
  x = jnp.ones((256, 256))
  jax.block_until_ready(run(x))
  with jax.profiler.trace(tmp_path):
    jax.block_until_ready(run(x))
  events = gpu_profile.events_in(tmp_path)
  assert events and all(milliseconds >= 0 for _, milliseconds in events)
  # The runtime's own spans are not kernels.
  assert not any('::' in name for name, _ in events)
