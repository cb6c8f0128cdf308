"""A training step compiled for devices that need not exist -> its needs.

Comes in: a Job on a mesh, whose devices may be jax's descriptions of a slice.
Goes out: XLA's own account of memory, and the collectives of a step, read from
the program. Runs nothing and makes no array.
"""

import collections
import math
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dpo_jax import sharding, types
from dpo_jax.run import memory

COLLECTIVES = (
  'all-gather',
  'all-reduce',
  'reduce-scatter',
  'all-to-all',
  'collective-permute',
)
_BITS = {'pred': 8, 'bf16': 16}  # all other types end with their bits
_COMPUTATION = re.compile(r'^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$')
_INSTRUCTION = re.compile(
  r'^\s*(?:ROOT )?%?[\w.\-]+ = (\(.*?\)|\S+) ([\w\-]+)\('
)


class Step(NamedTuple):
  """XLA's account of one update on one device, bytes."""

  arguments: int
  peak: int
  on_host: int  # arguments that stay in the host's memory
  # {name of COLLECTIVES: bytes of its results}; loops over layers counted by
  # their trips, loops whose trips depend on data once
  collectives: dict[str, float]


def compile_step(job) -> Step:
  """Compiles the update of a job's largest planned batch."""
  compiled = lower_step(job).compile()
  stats = compiled.memory_analysis()
  on_host = stats.host_argument_size_in_bytes
  return Step(
    stats.argument_size_in_bytes,
    # XLA counts all memories in its peak, and arguments live throughout.
    stats.peak_memory_in_bytes - on_host,
    on_host,
    collectives(compiled.as_text()),
  )


def lower_step(job, platforms: tuple[str, ...] | None = None):
  """Returns the lowered update of a job's largest planned batch.

  Args:
    job: on a mesh.
    platforms: to lower for; None = that of the mesh.
  """
  steps = range(min(job.train_plan.steps_per_epoch, job.num_steps))
  largest = max(steps, key=lambda t: job.train_plan.step(t).num_rows)
  part = job.inputs.train
  batch = job.train_plan.batch(largest, part.store)
  where = sharding.batch_shardings(job.mesh, batch)
  everywhere = sharding.replicated(job.mesh)

  def place(x, where):
    return jax.ShapeDtypeStruct(jnp.shape(x), x.dtype, sharding=where)

  scale = jax.ShapeDtypeStruct((), jnp.float32, sharding=everywhere)
  reference = types.Frozen(
    base=job.base.abstract if job.base else None,
    scale=scale if job.base else None,
    weights=job.reference.abstract if memory.has_own_reference(job) else None,
  )
  hyper = {k: scale for k in job.hyper}
  args = job.abstract, reference, jax.tree.map(place, batch, where), hyper
  return job.train_step.trace(*args).lower(lowering_platforms=platforms)


def collectives(text: str) -> dict[str, float]:
  """Returns the bytes of results of collectives in a program, by kind."""
  entry, bodies = _computations(text)
  total, seen = collections.Counter(), set()

  def add(name, times):
    for line in bodies[name]:
      match = _INSTRUCTION.match(line)
      if not match:
        continue
      result, kind = match[1], match[2].removesuffix('-start')
      if kind in COLLECTIVES:
        # XLA:TPU writes the start, the steps and the end of one collective into
        # as many fusions: they share a channel.
        channel = re.search(r'channel_id=\d+', line)
        if channel and channel[0] in seen:
          continue
        seen.add(channel and channel[0])
        # What starts has its operand in the result too.
        twice = match[2].endswith('-start') and kind != 'all-reduce'
        total[kind] += _size(result) / (1 + twice) * times
      elif kind == 'while':
        body = re.search(r'body=%?([\w.\-]+)', line)[1]
        add(body, times * _trips(line, bodies))
      elif kind in ('fusion', 'call', 'conditional', 'async-start'):
        for called in re.findall(r'(?:calls|to_apply)=%?([\w.\-]+)', line):
          add(called, times)

  add(entry, 1)
  return {kind: total[kind] for kind in COLLECTIVES}


def _trips(line, bodies) -> int:
  """Turns of a while loop; 1 where data decides."""
  known = re.search(r'"known_trip_count":\{"n":"(\d+)"', line)
  if known:
    return int(known[1])
  # XLA:TPU leaves no count: the loops of jax go from 0 while i < constant.
  condition = bodies[re.search(r'condition=%?([\w.\-]+)', line)[1]]
  limit = re.search(
    r'compare\(\S+, %?([\w.\-]+)\), direction=LT', condition[-1]
  )
  for other in condition if limit else ():
    value = re.match(
      rf'\s*%?{re.escape(limit[1])} = s32\[\]\S* constant\((\d+)\)', other
    )
    if value:
      return int(value[1])
  return 1


def _computations(text):
  """The name of the entry, and {name: lines} of all computations."""
  bodies, name, entry = {}, '', ''
  for line in text.splitlines():
    match = _COMPUTATION.match(line)
    if match:
      name = match[2]
      bodies[name] = []
      entry = name if match[1] else entry
    # The attributes of a kernel have lines of their own, some of them '}}, ..'.
    elif re.match(r'}(, |$)', line):
      name = ''
    elif name:
      bodies[name].append(line)
  return entry, bodies


def _size(shape: str) -> float:
  """Bytes of a shape, or of all in a tuple."""
  total = 0.0
  for kind, sizes in re.findall(r'(\w+)\[([\d,]*)\]', shape):
    bits = _BITS.get(kind) or int(re.search(r'\d*$', kind)[0] or 0)
    total += bits / 8 * math.prod(int(n) for n in sizes.split(',') if n)
  return total
