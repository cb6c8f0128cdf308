"""Answers of the processes -> figures: rates, memory, ratios, loss curves.

Comes in: what crew.py measured. Goes out: a dict of JSON types. Every ratio is
the median over rounds of a quotient within one round, so that what slows the
machine down for a while hits both sides. Measures and writes nothing.
"""

import importlib.metadata
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from dpo_jax.bench.crew import Measured
from dpo_jax.models import architectures
from dpo_jax.models.decoder_config import DecoderConfig
from dpo_jax.storage import environment
from dpo_jax.types import EncodedRecord

_PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'numpy')
_COMPARED = 6  # updates whose losses are compared
# Ratio -> ours and the other side. A tuple stands for its fastest member.
_SHIPPED = ('trl:as_shipped', 'trl:precomputed', 'trl:best_shipped')
_PATCHED = ('trl:patched', 'trl:best_patched')
_OURS = ('packed+shared', 'packed+shared+cached')
_RATIOS = {
  'ratio/as_shipped': (('packed+shared',), ('trl:as_shipped',)),
  'ratio/precomputed': (('packed+shared+cached',), ('trl:precomputed',)),
  'ratio/best_shipped': (_OURS, _SHIPPED),
  'ratio/patched': (('packed+shared',), ('trl:patched',)),
  'ratio/best_patched': (_OURS, _PATCHED),
  'ratio/lora': (('packed+shared+lora',), ('trl:lora',)),
}


def collect(
  options: Any,
  config: DecoderConfig,
  records: Sequence[EncodedRecord],
  measured: Measured,
) -> dict[str, Any]:
  """Returns all figures of a run of the benchmark."""
  peak = options.peak_tflops * 1e12 or measured.peak
  rounds = {name: r[1:] for name, r in measured.rounds.items() if len(r) > 1}
  out = {
    'options': options._asdict(),
    'model': architectures.to_hf_config(config),
    'pairs': _lengths(records),
    'machine': _machine(measured, peak),
    'versions': {name: _version(name) for name in _PACKAGES},
    'commit': environment.commit(),
    'command': shlex.join(sys.argv),
    'variants': {
      name: _variant(options, name, own, measured, peak)
      for name, own in rounds.items()
    },
    'failed': measured.failed,
    'curves': _curves(options, measured),
  }
  return out | _ratios(options, rounds)


def ratio(
  rounds: dict[str, list[dict[str, Any]]], ours: str, other: str, clock: str
) -> list[float]:
  """Returns, for each round, how many times as fast the first is."""
  return [
    theirs[clock] / own[clock]
    for own, theirs in zip(rounds[ours], rounds[other])
  ]


def _variant(options, name, rounds, measured: Measured, peak) -> dict[str, Any]:
  """The figures of one way; medians are over rounds."""
  info = dict(measured.info[name])
  info.pop('forward_flops', None)
  pairs = options.batch_size * options.steps
  wall, cpu = (
    float(np.median([r[clock] for r in rounds]))
    for clock in ('seconds', 'cpu_seconds')
  )
  out = info | {
    'side': measured.sides[name],
    'pairs_per_second': pairs / wall,
    'pairs_per_cpu_second': pairs / cpu,
    'peak_rss_mb': max(r['peak_rss_mb'] for r in rounds),
    'device_peak_mb': max(r['device_peak_mb'] for r in rounds),
    'seconds': [r['seconds'] for r in rounds],
    'cpu_seconds': [r['cpu_seconds'] for r in rounds],
    'losses': rounds[0].get('losses', []),
  }
  ours = next((i for i in measured.info.values() if 'forward_flops' in i), None)
  if ours:
    out['tokens_per_second'] = ours['tokens'] / wall
    needed = ours['forward_flops'] * _passes(name)
    out['mfu'] = needed / wall / peak if peak else None
  return out


def _passes(name: str) -> int:
  """Forward passes that an update needs; a backward one counts 2.

  Or 1, if the weights have no gradient: 3 or 2 for the policy, and 1 for a
  reference whose scores are not known.
  """
  if name in ('forward', 'forward+backward'):
    return 1 if name == 'forward' else 3
  known = ('cached', 'precomputed', 'best_')
  return (2 if 'lora' in name else 3) + (not any(k in name for k in known))


def _ratios(options, rounds) -> dict[str, Any]:
  """Every ratio whose sides were measured, in CPU time and in wall time."""
  wanted = dict(_RATIOS)
  for name in _OURS:
    key = 'ratio/baseline' + ('_cached' if 'cached' in name else '')
    wanted[key] = ((name,), (f'{options.baseline}:{name}',))
  first = next(iter(rounds), '')
  for name in rounds:
    if name != first and ':' not in name and ':' not in first:
      wanted[f'ratio/{name}'] = ((name,), (first,))
  # How many forwards a forward with its gradient costs.
  wanted['ratio/backward'] = (('forward',), ('forward+backward',))
  out = {}
  for key, (ours, others) in wanted.items():
    ours, others = (
      [name for name in names if name in rounds] for names in (ours, others)
    )
    if not ours or not others:
      continue
    pair = _fastest(rounds, ours), _fastest(rounds, others)
    for clock, suffix in (('cpu_seconds', ''), ('seconds', '/wall')):
      values = ratio(rounds, *pair, clock)
      out[key + suffix] = float(np.median(values))
      out[f'{key}{suffix}/rounds'] = values
    out[f'{key}/sides'] = list(pair)
  return out


def _fastest(rounds, names: list[str]) -> str:
  def cost(name):
    return np.median([r['cpu_seconds'] for r in rounds[name]])

  return min(names, key=cost)


def _curves(options, measured: Measured) -> dict[str, Any]:
  """Compares the losses of the first updates, of all weights and of LoRA."""
  float32 = options.dtype == 'float32'
  tolerance = options.tolerance or (1e-5 if float32 else 0.02)
  largest: dict[str, float | None] = {}
  for has_adapter in (False, True):
    group = {
      name: np.array(rounds[0]['losses'][:_COMPARED])
      for name, rounds in measured.rounds.items()
      if rounds
      and rounds[0].get('losses')
      and ('lora' in name) == has_adapter
      and (options.same_weights or measured.sides[name] != 'trl')
    }
    base = next(iter(group.values()), None)
    for name, curve in group.items():
      difference = float(np.max(np.abs(curve - base)))
      # JSON has no NaN; None is no agreement.
      largest[name] = difference if np.isfinite(difference) else None
  return {
    'agree': all(
      value is not None and value <= tolerance for value in largest.values()
    ),
    'tolerance': tolerance,
    'updates': min(_COMPARED, options.steps),
    'difference': largest,
  }


def _lengths(records: Sequence[EncodedRecord]) -> dict[str, Any]:
  answers = [len(c) for r in records for c in r.completions]
  return {
    'count': len(records),
    'mean_prompt': float(np.mean([len(r.prompt) for r in records])),
    'mean_answer': float(np.mean(answers)),
  }


def _machine(measured: Measured, peak: float) -> dict[str, Any]:
  info = next(iter(measured.info.values()), {})
  affinity = getattr(os, 'sched_getaffinity', None)
  return {
    'device': info.get('device', 'none'),
    'platform': info.get('platform', 'none'),
    'processor': platform.processor() or platform.machine(),
    'cores': len(affinity(0)) if affinity else os.cpu_count(),
    'system': platform.platform(),
    'peak_tflops': peak / 1e12,
  }


def _version(package: str) -> str:
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return 'none'
