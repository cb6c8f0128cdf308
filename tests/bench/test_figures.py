"""figures and report: arithmetic on answers that are made up."""

import math

import numpy as np
import pytest

from dpo_jax.bench import crew, figures, report, step, workload

OPTIONS = step.Options(model='tiny', max_length=32, steps=2, batch_size=4)
CONFIG = workload.shape(OPTIONS)
RECORDS = workload.records(OPTIONS, CONFIG)[:4]
SIDES = {
  'packed+shared': 'ours',
  'packed+shared+cached': 'ours',
  'packed+shared+lora': 'ours',
  'trl:as_shipped': 'trl',
  'trl:best_shipped': 'trl',
  'trl:patched': 'trl',
  'trl:best_patched': 'trl',
  'trl:lora': 'trl',
}
# CPU-seconds of three rounds; the machine is slow in the second one.
CPU = dict(
  zip(
    SIDES,
    (
      (1, 10, 1.25),
      (0.8, 8, 1.0),
      (1, 9, 1),
      (4, 50, 5),
      (3, 30, 4),
      (2, 20, 2),
      (1.2, 14, 1.6),
      (4, 27, 5),
    ),
  )
)


def measured(**curves):
  """Answers of all processes; `curves` replaces losses by name."""
  info, rounds = {}, {}
  for name, side in SIDES.items():
    info[name] = {'framework': 'f', 'device': 'd', 'platform': 'cpu'}
    if side == 'ours':
      info[name] |= {'forward_flops': 1e9, 'tokens': 600}
    base = [0.5, 0.4] if 'lora' in name else [0.69, 0.6]
    answers = [
      {
        'seconds': cpu / 2,
        'cpu_seconds': cpu,
        'losses': curves.get(name, base),
        'peak_rss_mb': 100 + i,
        'device_peak_mb': 0.0,
      }
      # The round that warms up is not counted.
      for i, cpu in enumerate((1000, *CPU[name]))
    ]
    rounds[name] = answers
  return crew.Measured(info, rounds, dict(SIDES), {}, 1e10)


def collect(options=OPTIONS, **curves):
  return figures.collect(options, CONFIG, RECORDS, measured(**curves))


def test_a_ratio_is_the_median_of_quotients_within_a_round():
  out = collect()
  # 4 / 1, 50 / 10, 5 / 1.25; medians of each side would give 4 and 4 again,
  # and those of all rounds together 5 / 1.25.
  assert out['ratio/as_shipped/rounds'] == [4, 5, 4]
  assert out['ratio/as_shipped'] == 4 == out['ratio/as_shipped/wall']
  assert out['ratio/lora/rounds'] == [4, 3, 5] and out['ratio/lora'] == 4


def test_the_best_of_a_side_is_its_fastest_member():
  out = collect()
  best = ['packed+shared+cached', 'trl:best_shipped']
  assert out['ratio/best_shipped/sides'] == best
  assert out['ratio/best_shipped'] == pytest.approx(3.75)  # 3.75, 3.75, 4
  best = ['packed+shared+cached', 'trl:best_patched']
  assert out['ratio/best_patched/sides'] == best
  assert out['ratio/best_patched'] == pytest.approx(1.6)  # 1.5, 1.75, 1.6
  assert 'ratio/baseline' not in out and 'ratio/precomputed' not in out


def test_rates_and_mfu_count_what_an_update_needs():
  variants = collect()['variants']
  own = variants['packed+shared']
  assert own['pairs_per_cpu_second'] == 8 / 1.25
  assert own['pairs_per_second'] == 16 / 1.25
  assert own['tokens_per_second'] == 600 / 0.625
  # Policy 3 forwards and reference 1; without the reference, or its gradient
  # of weights, less.
  forwards = {'packed+shared': 4, 'packed+shared+cached': 3}
  forwards |= {'packed+shared+lora': 3, 'trl:as_shipped': 4}
  forwards |= {'trl:best_patched': 3, 'trl:patched': 4}
  for name, count in forwards.items():
    wall = np.median(variants[name]['seconds'])
    assert variants[name]['mfu'] == pytest.approx(count * 0.1 / wall)
  assert own['peak_rss_mb'] == 103


@pytest.mark.parametrize('wrong', [0.6 + 2e-5, math.nan, math.inf])
def test_a_curve_that_differs_is_named(wrong):
  assert collect()['curves']['agree']
  assert 'curves of all 8 agree over 2 updates' in report.markdown(collect())
  # LoRA's begins elsewhere and is compared with LoRA's.
  out = collect(**{'trl:patched': [0.69, wrong]})
  assert not out['curves']['agree']
  text = report.markdown(out)
  assert 'LOSS CURVES DIFFER: trl:patched over' in text
  other = collect(
    OPTIONS._replace(same_weights=False), **{'trl:patched': [9, 9]}
  )
  assert other['curves']['agree'] and len(other['curves']['difference']) == 3


def test_a_failure_or_other_losses_fail_the_run(monkeypatch, tmp_path):
  path = tmp_path / 'figures.json'
  options = OPTIONS._replace(json=str(path))
  monkeypatch.setattr(crew, 'check', lambda options: None)
  monkeypatch.setattr(step, 'measure', lambda o: collect(o))
  assert 'ratio/as_shipped' in step.run(options) and path.exists()
  wrong = {'trl:lora': [0.5, 0.3]}
  monkeypatch.setattr(step, 'measure', lambda o: collect(o, **wrong))
  with pytest.raises(step.Failed, match='LOSS CURVES DIFFER: trl:lora'):
    step.run(options)
  lost = collect() | {'failed': {'trl:lora': 'exit 1: no memory'}}
  monkeypatch.setattr(step, 'measure', lambda o: lost)
  with pytest.raises(step.Failed, match='NOT MEASURED: trl:lora: exit 1'):
    step.run(options)


def test_growth_scales_the_flags_and_compares_with_the_first(monkeypatch):
  seen = []

  def measure(options):
    seen.append(options)
    return collect(options)

  monkeypatch.setattr(step, 'measure', measure)
  monkeypatch.setattr(crew, 'check', lambda options: None)
  text = step.run(OPTIONS._replace(grow=('width', 'pairs')))
  sizes = [(o.width, o.mlp, o.heads, o.kv_heads, o.batch_size) for o in seen]
  assert sizes[:3] == [(k * 64, k * 176, k * 4, k * 4, 4) for k in (1, 2, 4)]
  assert sizes[3:] == [(0, 0, 0, 0, k * 4) for k in (1, 2, 4)]
  assert '| width, mlp, heads, kv_heads | variant |' in text
  assert '| 16 | packed+shared | 0.312 | 1.00 | 0.625 | 1.00 | 103 |' in text
