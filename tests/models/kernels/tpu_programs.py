"""Attention compiled for TPUs that are not there: bytes and memory, as a table.

    pip install --no-deps --target=libtpu_here 'libtpu==0.0.42.*'
    PYTHONPATH=libtpu_here python tests/models/kernels/tpu_programs.py

compiles the value and the gradient of attention on one row of two branches,
16 query heads and 8 key heads of 128 channels, bfloat16, by dense attention and
by splash, for one device of a slice; arguments such as `v5e:2048` choose among
the cases. XLA counts the bytes that a program reads and writes; a kernel counts
as its operands and results.
"""

import importlib.util
import os
import pathlib
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import topologies

# As a script it finds the package, too.
sys.path.append(str(pathlib.Path(__file__).resolve().parents[3]))

from dpo_jax import types  # noqa: E402
from dpo_jax.models.kernels import registry  # noqa: E402

SLICES = {'v5e': 'v5e:2x2', 'v5p': 'v5p:2x2x1'}
HEADS, KV_HEADS, HEAD_SIZE = 16, 8, 128


class Program(NamedTuple):
  """What XLA says of a compiled program, bytes."""

  accessed: float
  peak: int


def devices(kind: str):
  """The devices of a slice that need not exist; libtpu must be importable."""
  spec = importlib.util.find_spec('libtpu')
  folder = spec.submodule_search_locations[0]
  os.environ['TPU_LIBRARY_PATH'] = os.path.join(folder, 'libtpu.so')
  # No machine of a slice is asked for its neighbours.
  os.environ['TPU_SKIP_MDS_QUERY'] = '1'
  slices = topologies.get_topology_desc(
    platform='tpu', topology_name=SLICES[kind]
  )
  return slices.devices


def compile_attention(
  device, name: str, length: int, window: int | None = None
) -> Program:
  """Compiles the value and the gradient of attention on one row."""
  choice = registry.Choice(name, branches=2)
  place = jax.sharding.SingleDeviceSharding(device)

  def array(shape, dtype):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=place)

  def run(q, k, v, out, rows):
    def attend(*qkv):
      return registry.attend(
        choice,
        *qkv,
        rows,
        registry.prepare(choice, rows),
        block=128,
        scale=HEAD_SIZE**-0.5,
        window=window,
        softcap=None,
      )

    value, pullback = jax.vjp(attend, q, k, v)
    return value, pullback(out)

  q, k = (
    array((1, length, n, HEAD_SIZE), jnp.bfloat16) for n in (HEADS, KV_HEADS)
  )
  rows = types.Rows(*[array((1, length), jnp.int32)] * len(types.Rows._fields))
  compiled = jax.jit(run).lower(q, k, k, q, rows).compile()
  memory = compiled.memory_analysis()
  return Program(
    compiled.cost_analysis()['bytes accessed'],
    memory.temp_size_in_bytes
    + memory.output_size_in_bytes
    + memory.argument_size_in_bytes,
  )


def main(cases: list[str]) -> None:
  print(
    '| device | slots | dense: bytes, memory | splash: bytes, memory '
    '| dense / splash: bytes, memory |\n|---|---|---|---|---|'
  )
  for case in cases or [f'{kind}:{n}' for kind in SLICES for n in (2048, 8192)]:
    kind, length = case.split(':')
    device = devices(kind)[0]
    dense, splash = (
      compile_attention(device, name, int(length))
      for name in ('dense', 'splash')
    )
    cells = [
      f'{x.accessed / 2**20:,.0f} MiB, {x.peak / 2**20:,.0f} MiB'
      for x in (dense, splash)
    ]
    ratios = [a / b for a, b in zip(dense, splash)]
    print(
      f'| {kind} | {int(length):,} | {cells[0]} | {cells[1]} '
      f'| {ratios[0]:.1f}, {ratios[1]:.1f} |',
      flush=True,
    )


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
