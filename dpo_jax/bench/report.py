"""Figures of the step's benchmark -> Markdown.

Comes in: the dict of figures.py. Goes out: tables, a line on the loss curves
and one on the machine. Computes nothing.
"""

from typing import Any

_COLUMNS = {
  'pairs/s': ('pairs_per_second', '.2f'),
  'tokens/s': ('tokens_per_second', '.0f'),
  'pairs/CPU-s': ('pairs_per_cpu_second', '.2f'),
  'packing': ('packing_efficiency', '.2f'),
  'compile s': ('compile_seconds', '.0f'),
  'XLA temp MB': ('temporary_mb', '.0f'),
  'peak RSS MB': ('peak_rss_mb', '.0f'),
  'peak device MB': ('device_peak_mb', '.0f'),
  'MFU': ('mfu', '.1%'),
}
_GROWN = (
  '| {} | variant | s per step | times the first | CPU s per step '
  '| times the first | peak RSS MB | XLA temp MB |'
)


def markdown(figures: dict[str, Any]) -> str:
  """Returns the report of one benchmark."""
  lines = _table(figures['variants'])
  ratios = [k for k in figures if k.endswith('/sides')]
  if ratios:
    lines += ['', '| ratio | of | to | CPU time | wall | rounds, CPU time |']
    lines.append('|---|---|---|---|---|---|')
    for key in ratios:
      name = key.removesuffix('/sides')
      ours, other = figures[key]
      rounds = figures[f'{name}/rounds']
      lines.append(
        f'| {name} | {ours} | {other} | {figures[name]:.2f} | '
        f'{figures[f"{name}/wall"]:.2f} | '
        f'{min(rounds):.2f} to {max(rounds):.2f} |'
      )
  for name, line in figures['failed'].items():
    lines += ['', f'NOT MEASURED: {name}: {line}']
  return '\n'.join([*lines, '', *_curves(figures), '', _footer(figures)])


def grown(result: dict[str, Any]) -> str:
  """Returns the report of a growth: one table per quantity that grew."""
  lines = []
  for point, figures in result['points'].items():
    if point.endswith('x1'):
      lines += [_GROWN.format(', '.join(figures['grown'])), '|---' * 8 + '|']
      first = figures['variants']
    steps = figures['options']['steps']
    sizes = ', '.join(map(str, figures['grown'].values()))
    for name, own in figures['variants'].items():
      cells = []
      for clock in ('seconds', 'cpu_seconds'):
        middle = _middle(own[clock])
        cells.append(f'{middle / steps:.3f}')
        cells.append(f'{middle / _middle(first[name][clock]):.2f}')
      memory = f'{own["peak_rss_mb"]:.0f} | {own.get("temporary_mb", 0):.0f}'
      lines.append(f'| {sizes} | {name} | {" | ".join(cells)} | {memory} |')
    if point.endswith('x4'):
      lines.append('')
  for name, line in result['failed'].items():
    lines.append(f'NOT MEASURED: {name}: {line}')
  return '\n'.join([*lines, _footer(figures)])


def _table(variants: dict[str, Any]) -> list[str]:
  """The table of rates; a column that no row has is left out."""
  columns = {
    title: (key, form)
    for title, (key, form) in _COLUMNS.items()
    if any(own.get(key) for own in variants.values())
  }
  lines = [
    f'| variant | {" | ".join(columns)} |',
    '|---' * len(columns) + '|---|',
  ]
  for name, own in variants.items():
    cells = [
      '' if own.get(key) is None else format(own[key], form)
      for key, form in columns.values()
    ]
    lines.append(f'| {name} | {" | ".join(cells)} |')
  return lines


def _curves(figures: dict[str, Any]) -> list[str]:
  curves = figures['curves']
  if len(curves['difference']) < 2:
    return ['Loss curves: nothing to compare.']
  # None stands for a difference that is not finite.
  size = {
    name: float('inf') if value is None else value
    for name, value in curves['difference'].items()
  }
  worst = max(size, key=size.get)
  said = (
    f'over {curves["updates"]} updates; the largest difference is '
    f'{size[worst]:.1e} ({worst}), allowed is {curves["tolerance"]:.0e}.'
  )
  if curves['agree']:
    return [f'Loss curves of all {len(size)} agree {said}']
  wrong = [name for name in size if size[name] > curves['tolerance']]
  return [f'LOSS CURVES DIFFER: {", ".join(wrong)} {said}']


def _middle(values: list[float]) -> float:
  ordered, half = sorted(values), len(values) // 2
  if len(values) % 2:
    return ordered[half]
  return (ordered[half - 1] + ordered[half]) / 2


def _footer(figures: dict[str, Any]) -> str:
  options, pairs = figures['options'], figures['pairs']
  machine, model = figures['machine'], figures['model']
  shape = ', '.join(
    f'{key} {model[key]}'
    for key in (
      'hidden_size',
      'num_hidden_layers',
      'num_attention_heads',
      'num_key_value_heads',
      'intermediate_size',
      'vocab_size',
    )
    if key in model
  )
  frameworks = {own['framework'] for own in figures['variants'].values()}
  return (
    f'{machine["device"]} ({machine["processor"]}, {machine["cores"]} cores), '
    f'peak {machine["peak_tflops"]:.2f} TFLOP/s; '
    f'{"; ".join(sorted(frameworks))}; {options["dtype"]}; '
    f'{options["model"]} ({shape}); LoRA of rank {options["lora"]}; '
    f'{options["batch_size"]} prompts per step, {pairs["count"]} pairs, '
    f'prompts of {pairs["mean_prompt"]:.0f} and answers of '
    f'{pairs["mean_answer"]:.0f} tokens, at most {options["max_length"]}; '
    f'median of {options["rounds"]} rounds of {options["steps"]} steps; '
    f'commit {figures["commit"]}.'
  )
