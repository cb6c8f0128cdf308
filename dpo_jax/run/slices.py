"""--plan_devices -> devices that need not exist.

Comes in: a number, or the name of rented devices: a TPU slice such as v5e-16 or
v5p:2x4x8, GPUs such as h100x8. Goes out: their number, kind and data sheet, and
with libtpu installed jax's descriptions of a slice, for which XLA compiles.
"""

import importlib.util
import math
import os
import re
from typing import NamedTuple

from dpo_jax import errors
from dpo_jax.run import peaks
from dpo_jax.run.peaks import Chip

_CHIPS = {chip.rented: chip for chip in peaks.CHIPS if chip.rented}
_INSTALL = "pip install --no-deps 'libtpu==0.0.42.*'"


class Planned(NamedTuple):
  """Devices to plan for."""

  num_devices: int
  chip: Chip | None = None  # None = devices of no known kind
  topology: str = ''  # of a TPU slice, such as 4x4

  @property
  def name(self) -> str:
    """The kind of the devices, for messages."""
    if self.chip is None:
      return 'device'
    if self.topology:
      return f'{self.chip.rented} ({self.topology})'
    return self.chip.rented


def parse(text: str) -> Planned:
  """Returns the devices of a name.

  Args:
    text: '256', 'v5e-16', 'v5p-128' (TensorCores, two per chip), 'v5p:2x4x8' or
      'h100x8'.

  Raises:
    InputError: no such devices, or no slice of that size.
  """
  if re.fullmatch(r'[1-9][0-9]{0,6}', text):
    return Planned(int(text))
  match = re.fullmatch(r'([a-z0-9]+?)([-:x])([0-9][0-9x]*)', text.lower())
  chip = match and _CHIPS.get(match[1])
  if not chip:
    raise _refuse(text, 'names no devices', _examples())
  sizes = match[3].split('x')
  if not all(re.fullmatch('[1-9][0-9]{0,6}', size) for size in sizes):
    raise _refuse(
      errors.show(text)[1:-1], 'has a size that is not a number', _examples()
    )
  counts = [int(size) for size in sizes]
  separator = {'gpu': ('x',), 'tpu': ('-', ':')}[chip.backend]
  if match[2] not in separator or (match[2] != ':' and len(counts) > 1):
    raise _refuse(text, 'is not how these devices are named', _examples())
  if chip.backend == 'gpu':
    return Planned(counts[0], chip)
  if match[2] == ':':
    if len(counts) != chip.axes or math.prod(counts) > chip.most:
      raise _refuse(
        text,
        f'is no topology of {chip.rented}',
        f'{chip.axes} sizes, at most {chip.most} chips',
      )
    return Planned(math.prod(counts), chip, match[3])
  return _of_slice(text, chip, counts[0])


def _of_slice(text: str, chip: Chip, count: int) -> Planned:
  """A slice that is named by its size."""
  known = {n * chip.units: n for n in _slice_sizes(chip)}
  if count not in known:
    near = sorted(known, key=lambda size: abs(size - count))[:3]
    raise _refuse(
      text,
      f'no {chip.rented} slice has that size',
      ' or '.join(f'{chip.rented}-{size}' for size in sorted(near)),
    )
  return Planned(known[count], chip, _topology(chip, known[count]))


def _slice_sizes(chip: Chip) -> list[int]:
  """Chips of a slice: powers of 2, except 2, which shares a host."""
  powers = [2**k for k in range(chip.most.bit_length())]
  return [n for n in powers if n != 2 and (n > 1 or chip.axes == 2)]


def _topology(chip: Chip, count: int) -> str:
  """The torus nearest to a cube: 16 chips are 4x4, or 2x2x4."""
  base, more = divmod(count.bit_length() - 1, chip.axes)
  sizes = [2 ** (base + (i >= chip.axes - more)) for i in range(chip.axes)]
  # Google writes the smallest slice 2x2x1.
  return 'x'.join(map(str, sorted(sizes, reverse=1 in sizes)))


def describe_devices(planned: Planned) -> list:
  """Returns jax's descriptions of the devices of a TPU slice.

  Raises:
    InputError: not a slice, or libtpu is not installed or does not know it.
  """
  where = '--compile'
  if not planned.topology:
    raise errors.refuse(
      where,
      f'XLA compiles without devices for TPU slices, not for {planned.name}',
      'plan without it, or name a slice such as --plan_devices=v5e-16',
    )
  spec = importlib.util.find_spec('libtpu')
  if spec is None:
    raise errors.refuse(
      where, 'libtpu, the compiler for TPUs, is not installed', _INSTALL
    )
  folder = spec.submodule_search_locations[0]
  os.environ.setdefault('TPU_LIBRARY_PATH', os.path.join(folder, 'libtpu.so'))
  # No machine of a slice is asked for its neighbours.
  os.environ.setdefault('TPU_SKIP_MDS_QUERY', '1')
  from jax.experimental import topologies

  sizes = planned.topology.split('x')
  name = f'{planned.chip.rented}:{"x".join(sizes)}'
  try:
    slices = topologies.get_topology_desc(platform='tpu', topology_name=name)
  except Exception as error:
    raise errors.refuse(
      where, f'libtpu: {errors.show(error)}', 'another topology, or libtpu'
    ) from error
  return list(slices.devices)


def _examples() -> str:
  return f'e.g. 256, v5e-16, v5p-128, h100x8; known: {", ".join(_CHIPS)}'


def _refuse(text: str, problem: str, fix: str):
  return errors.refuse('--plan_devices', f'{text!r} {problem}', fix)
