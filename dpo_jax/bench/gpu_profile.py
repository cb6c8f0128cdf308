"""Profile of one step -> a table of kernels.

Comes in: flags of the benchmark of the step. Goes out: the kernels of one round
of one update, with their calls and milliseconds, and their sums by group. Reads
jax's own profile; needs no TensorBoard.

  python -m dpo_jax.bench.gpu_profile --json=FILE [FLAGS of benchmark.py]
"""

import argparse
import collections
import pathlib
import re
import sys
import tempfile
from collections.abc import Iterable
from typing import Any

import jax

from dpo_jax.storage import files

# Group -> what its kernels' names have; the first that fits counts.
_GROUPS = {
  # cuDNN's own helpers have its name and no other.
  'attention': r'fmha|flash|attention|splash|sdpa|mosaic|cudnn',
  'matmul': r'gemm|nvjet|cutlass|xmma|matmul|\bdot|^dot|cublas|ynn|oneDNN',
  'copies': r'memcpy|memset|copy|transpose',
  'scatter and gather': r'scatter|gather|dynamic',
  'fused': r'fusion|fused|loop_|input_|wrapped_|triton|reduce',
}
_LOOPS = re.compile(r'(while|call|conditional)([._]\d+)?$')
_SHOWN = 25  # kernels with a row of their own


def table(
  events: Iterable[tuple[str, float]], wall_ms: float
) -> dict[str, Any]:
  """Sums events by kernel and by group.

  Args:
    events: name and milliseconds of each call.
    wall_ms: of the whole step.

  Returns:
    The JSON that gpu_page.py shows: kernels and groups, the longest first.
  """
  by_name = collections.defaultdict(list)
  for name, milliseconds in events:
    # Calls of one kernel differ in a number at their end only.
    by_name[re.sub(r'[._]\d+$', '', name)].append(milliseconds)
  busy = sum(map(sum, by_name.values()))
  kernels, groups = [], collections.Counter()
  for name, times in by_name.items():
    kernels.append(
      {
        'name': name[:120],
        'group': group(name),
        'calls': len(times),
        'ms': sum(times),
        'share': sum(times) / busy,
      }
    )
    groups[group(name)] += sum(times)
  kernels.sort(key=lambda row: -row['ms'])
  return {
    'wall_ms': wall_ms,
    'busy_ms': busy,
    'groups': [
      {'name': name, 'ms': ms, 'share': ms / busy}
      for name, ms in groups.most_common()
    ],
    'kernels': kernels[:_SHOWN],
  }


def group(name: str) -> str:
  """Returns the group of a kernel, by its name."""
  for each, pattern in _GROUPS.items():
    if re.search(pattern, name, re.IGNORECASE):
      return each
  return 'other'


def events_in(folder: pathlib.Path) -> list[tuple[str, float]]:
  """Returns name and milliseconds of every kernel in a profile.

  On a GPU these are the calls on its streams; on a CPU the operations of
  compiled programs.
  """
  (path,) = folder.rglob('*.xplane.pb')
  planes = list(jax.profiler.ProfileData.from_file(str(path)).planes)
  devices = [p for p in planes if p.name.startswith('/device:GPU')]
  events = []
  for plane in devices or planes:
    for line in plane.lines:
      # Other lines of a device repeat the streams' time, by operation.
      if devices and not line.name.startswith('Stream'):
        continue
      for event in line.events:
        is_kernel = devices or any(key == 'hlo_op' for key, _ in event.stats)
        # A loop's time is that of the kernels in it.
        if is_kernel and not _LOOPS.match(event.name):
          events.append((event.name, event.duration_ns / 1e6))
  return events


def main(words: list[str]) -> int:
  """Writes the file that --json names."""
  # Here, not above: the tables are made without a model.
  from dpo_jax.bench import step, variants, workload

  options = _options(step.Options(), words)._replace(steps=1)
  records = workload.Store(workload.records(options, workload.shape(options)))
  ours = variants.Ours(options, records, options.variants[0])
  ours.round()  # moves arrays, and is not profiled
  wall = ours.round()['seconds']
  with tempfile.TemporaryDirectory() as scratch:
    with jax.profiler.trace(scratch):
      ours.round()
    events = events_in(pathlib.Path(scratch))
  files.write_json(options.json, table(events, 1e3 * wall))
  return 0


def _options(defaults, words: list[str]):
  """The flags of the benchmark; --tiny is the check's own."""
  parser = argparse.ArgumentParser()
  parser.add_argument('--tiny', action='store_true')
  for name, default in defaults._asdict().items():
    kind = {tuple: lambda text: tuple(text.split(',')), bool: bool}.get(
      type(default), type(default)
    )
    parser.add_argument(f'--{name}', type=kind, default=default)
  given = vars(parser.parse_args(words))
  return defaults._replace(**{k: given[k] for k in defaults._fields})


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
