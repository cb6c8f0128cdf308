"""points -> what a sweep would do and cost: --dry-run.

Comes in: the points. Goes out: a list of them by the compile that they share,
with the arithmetic and the memory that the plan of a run counts. Writes
nothing.
"""

import itertools
import pathlib
import tempfile
from collections.abc import Sequence

from dpo_jax.run import inputs as inputs_lib
from dpo_jax.run import job as job_lib
from dpo_jax.run import memory, plan
from dpo_jax.sweeps.folder import Folder
from dpo_jax.sweeps.points import Point


def describe(listed: Sequence[Point], folder: Folder | None = None) -> str:
  """The points by group, what a group costs, and what all cost.

  Args:
    listed: points, those of one graph together.
    folder: of the sweep, if it is known: points that are done cost nothing.
  """
  lines, total, num_left = [], 0.0, 0
  groups = [
    list(group) for _, group in itertools.groupby(listed, lambda p: p.graph)
  ]
  stands = _states(listed, folder)
  with tempfile.TemporaryDirectory() as scratch:
    for number, group in enumerate(groups, 1):
      states = [stands.get(point.digest, '') for point in group]
      left = sum(state != 'done' for state in states)
      job = _job(group[0], pathlib.Path(scratch))
      counts, needed = plan.step_flops(job), memory.needed(job)
      flops = counts['flops_per_step'] * job.num_steps
      total, num_left = total + flops * left, num_left + left
      lines.append(
        f'group {number}, one compile: {len(group)} points, '
        f'{" + ".join(job.objective.terms)}, {job.num_steps} updates of '
        f'{job.config.train.batch_size} prompts, {flops:.3e} FLOPs a point, '
        f'{sum(needed) / 2**30:.3f} GiB per device'
      )
      lines += [
        f'  {point.name}' + (f'  ({state})' if state else '')
        for point, state in zip(group, states)
      ]
  lines.append(
    f'{len(listed)} points in {len(groups)} groups, {num_left} to run: '
    f'{total:.3e} FLOPs in all'
  )
  return '\n'.join(lines)


def _states(listed: Sequence[Point], folder: Folder | None) -> dict[str, str]:
  """{digest: where a point stands}; '' without a folder or before its start."""
  if folder is None:
    return {}
  named = {facts['digest']: name for name, facts in folder.known().items()}
  states = {
    p.digest: folder.state(named.get(p.digest, p.name), p).state for p in listed
  }
  return {k: '' if state == 'waiting' else state for k, state in states.items()}


def _job(point: Point, scratch: pathlib.Path) -> job_lib.Job:
  """The job of a point; what reading its data says is not shown."""
  job_lib.check_mesh(point.config)
  inputs = inputs_lib.read(point.config, scratch, log=lambda line: None)
  return job_lib.build(point.config, inputs)
