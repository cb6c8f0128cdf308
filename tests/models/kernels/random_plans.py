"""A kernel against dense attention on random plans, as a table.

    python tests/models/kernels/random_plans.py 30 splash

prints a row per plan and dtype: the layout, the shape, and the largest errors
of value and gradient beside those of dense attention. Exits 1 if a plan fails.
On CPU kernels are interpreted, which takes some seconds per plan.
"""

import pathlib
import sys
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

# As a script it finds the package, too.
sys.path.append(str(pathlib.Path(__file__).resolve().parents[3]))

from dpo_jax import types  # noqa: E402
from dpo_jax.data.batches import rows as rows_lib  # noqa: E402
from dpo_jax.models.kernels import proof, registry  # noqa: E402


class Plan(NamedTuple):
  layout: str
  rows: types.Rows
  branches: int  # most per prompt
  heads: proof.Heads


def make(seed: int, num_rows: int = 2) -> Plan:
  """Rows of random prompts and completions, and random heads."""
  rng = np.random.default_rng(seed)
  layout = rows_lib.LAYOUTS[seed % 3]
  num_completions = int(rng.integers(1, 5))
  length = int(rng.integers(40, 260))
  records, units = [], []
  for i in range(8):
    trunk = int(rng.integers(0, length // 2))
    lengths = rng.integers(1, max(2, length // 3), num_completions)
    # Some completions are absent; at least one is there.
    lengths = lengths * (rng.random(num_completions) < 0.8)
    lengths[0] = max(lengths[0], 1)
    units += rows_lib.make_units(
      i, trunk + 1, lengths.tolist(), row_length=length, layout=layout
    )
    texts = tuple(np.full(n, 5, np.int32) for n in lengths)
    records.append(types.EncodedRecord(np.ones(trunk + 1, np.int32), texts, ()))
  rows = rows_lib.fill(
    rows_lib.place(units, row_length=length, layout=layout)[:num_rows],
    records,
    row_length=length,
    completions_per_prompt=num_completions,
  )
  kv_heads = int(rng.choice([1, 2]))
  head_size = int(rng.choice([8, 16, 64, 128]))
  heads = proof.Heads(
    num_heads=kv_heads * int(rng.choice([1, 2, 3])),
    num_kv_heads=kv_heads,
    head_size=head_size,
    scale=head_size**-0.5,
    # Short enough to hide keys of most texts.
    window=int(rng.integers(1, length // 6)) if seed % 2 else None,
    softcap=float(rng.uniform(1, 5)) if seed // 2 % 2 else None,
  )
  return Plan(layout, rows, int(max(rows.branch.max(), 1)), heads)


def errors(
  plan: Plan, dtype: str, seed: int = 0, name: str = 'splash'
) -> proof.Errors:
  choice = registry.Choice(
    name, plan.branches, int(plan.rows.prompt_id.max()), True
  )
  return proof.compare(choice, plan.heads, plan.rows, jnp.dtype(dtype), seed)


def main(num_plans: int = 30, name: str = 'splash') -> int:
  print(
    '| plan | layout | rows | branches | heads | window | soft cap | dtype '
    '| value (dense) | gradient (dense) |\n|' + '---|' * 10
  )
  failed = 0
  for seed in range(num_plans):
    plan = make(seed)
    heads = plan.heads
    for dtype in ('float32', 'bfloat16'):
      got = errors(plan, dtype, seed, name)
      failed += not got.are_small
      R, L = plan.rows.branch.shape
      print(
        f'| {seed} | {plan.layout} | {R} x {L} | {plan.branches} '
        f'| {heads.num_heads}/{heads.num_kv_heads} x {heads.head_size} '
        f'| {heads.window or "none"} '
        f'| {f"{heads.softcap:.1f}" if heads.softcap else "none"} | {dtype} '
        f'| {got.value:.1e} ({got.dense_value:.1e}) '
        f'| {got.gradient:.1e} ({got.dense_gradient:.1e}) |',
        flush=True,
      )
  print(f'{failed} of {2 * num_plans} comparisons failed')
  return 1 if failed else 0


if __name__ == '__main__':
  sys.exit(main(*map(int, sys.argv[1:2]), *sys.argv[2:]))
