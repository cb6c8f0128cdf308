"""The page of a check of a GPU: its JSON -> Markdown.

Comes in: the dict of gpu_check.py, complete or not. Goes out: one page; a stage
without figures has a line in the list of stages. Computes no figure.
"""

from typing import Any

_REHEARSAL = (
  '**A rehearsal on a CPU.** Small models and few steps: it shows that every '
  'stage works, and nothing about a GPU.'
)
_STEP = {
  'pairs/s': ('pairs_per_second', '.1f'),
  'tokens/s': ('tokens_per_second', '.0f'),
  'MFU': ('mfu', '.1%'),
  'peak device MB': ('device_peak_mb', '.0f'),
  'XLA temp MB': ('temporary_mb', '.0f'),
  'packing': ('packing_efficiency', '.2f'),
  'compile s': ('compile_seconds', '.0f'),
}
_ERRORS = ('value', 'dense_value', 'gradient', 'dense_gradient')


def page(state: dict[str, Any]) -> str:
  """Returns the page."""
  stages = state['stages']
  lines = ['# Check of a GPU', '']
  if state.get('tiny'):
    lines += [_REHEARSAL, '']
  lines += [
    f'Way in: {state.get("way") or "as it is"}; at most '
    f'{state.get("minutes", 0):g} minutes; commit {state.get("commit")}.',
    '',
    *_stages(stages),
  ]
  shown = {'machine': _machine, 'equal': _equal, 'profile': _profile}
  for entry in stages.values():
    result = entry.get('result')
    if result and entry['kind'] in shown:
      lines += ['', *shown[entry['kind']](entry['title'], result)]
  return '\n'.join([*lines, *_steps(stages), *_commands(stages)])


def _stages(stages: dict[str, Any]) -> list[str]:
  lines = ['| stage | status | s | why |', '|---|---|---|---|']
  for name, entry in stages.items():
    seconds = entry.get('seconds', '')
    line = _cell(entry.get('line', ''))
    lines.append(f'| {name} | {entry["status"]} | {seconds} | {line} |')
  return lines


def _machine(title: str, result: dict[str, Any]) -> list[str]:
  versions = ', '.join(
    f'{name} {version}'
    for name, version in result['versions'].items()
    if version != 'none'
  )
  absent = [k for k, version in result['versions'].items() if version == 'none']
  return [
    f'## {title}',
    '',
    f'{result["device"]}; nvidia-smi: {result["nvidia-smi"]}; '
    f'{result["cores"]} cores; Python {result["python"]}; {versions}; '
    f'not there: {", ".join(absent) or "nothing"}.',
    '',
    '| rate | measured | data sheet |',
    '|---|---|---|',
    f'| matmul, bfloat16, TFLOP/s | {result["bfloat16_tflops"]:.1f} '
    f'| {result["sheet_tflops"] or ""} |',
    f'| matmul, float32, TFLOP/s | {result["float32_tflops"]:.1f} | |',
    f'| copy, TB/s | {result["copy_tb_per_second"]:.3f} | |',
  ]


def _equal(title: str, result: dict[str, Any]) -> list[str]:
  lines = [
    f'## {title}',
    '',
    'Largest errors against float32, as shares of the largest value. Right is '
    'at most twice the error of the plain form in the same dtype, or 1e-5 '
    '(value) and 1e-4 (gradient).',
    '',
    '| form | case | dtype | value | plain | gradient | plain | |',
    '|---|---|---|---|---|---|---|---|',
  ]
  for row in result['rows']:
    cells = [row['form'], row['case'], row['dtype']]
    if 'line' in row:
      cells += [''] * 4 + [_cell(row['line'])]
    else:
      cells += [f'{row[key]:.1e}' for key in _ERRORS]
      cells.append('right' if row['right'] else '**wrong**')
    lines.append(f'| {" | ".join(cells)} |')
  return lines


def _profile(title: str, result: dict[str, Any]) -> list[str]:
  busy, wall = result['busy_ms'], result['wall_ms']
  lines = [
    f'## Profile of a step, {title}',
    '',
    f'One step took {wall:.1f} ms, kernels of it {busy:.1f} ms '
    f'({busy / wall:.0%}; several at a time count each).',
    '',
    '| group | ms | share |',
    '|---|---|---|',
    *(
      f'| {row["name"]} | {row["ms"]:.2f} | {row["share"]:.1%} |'
      for row in result['groups']
    ),
    '',
    '| kernel | group | calls | ms | share |',
    '|---|---|---|---|---|',
  ]
  for row in result['kernels']:
    lines.append(
      f'| `{_cell(row["name"])}` | {row["group"]} | {row["calls"]} | '
      f'{row["ms"]:.2f} | {row["share"]:.1%} |'
    )
  return lines


def _steps(stages: dict[str, Any]) -> list[str]:
  """One table of all benchmarks, and one of the ratios to TRL."""
  lines, ratios = [], []
  for entry in stages.values():
    result = entry.get('result') or {}
    if entry['kind'] != 'step':
      continue
    for name, own in result.get('variants', {}).items():
      cells = [
        '' if own.get(key) is None else format(own[key], form)
        for key, form in _STEP.values()
      ]
      lines.append(f'| {entry["title"]} | {name} | {" | ".join(cells)} |')
    ratios += [
      f'| {entry["title"]} | {" | ".join(sides)} | '
      f'{result[key.removesuffix("sides") + "wall"]:.2f} |'
      for key, sides in result.items()
      if key.endswith('/sides')
    ]
  if lines:
    head = f'| model | variant | {" | ".join(_STEP)} |'
    rule = '|---' * (len(_STEP) + 2) + '|'
    lines = ['', '## The DPO step', '', head, rule, *lines]
  if ratios:
    lines += [
      '',
      '| model | ratio of | to | wall |',
      '|---|---|---|---|',
      *ratios,
    ]
  return lines


def _commands(stages: dict[str, Any]) -> list[str]:
  commands = [
    f'{name}: {entry["command"]}'
    for name, entry in stages.items()
    if 'command' in entry
  ]
  if not commands:
    return []
  return ['', '## Commands', '', '```text', *commands, '```']


def _cell(text: str) -> str:
  """A text that cannot end its cell."""
  return text.replace('|', '\\|').replace('`', "'")
