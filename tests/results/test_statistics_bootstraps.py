"""Intervals against scipy's BCa and rliable's stratified bootstrap."""

import os
import subprocess
import sys

import numpy as np
import pytest
from results import bootstraps, rliable_intervals

from dpo_jax.results import statistics


def _arrays(kind):
  """Losses of a trained policy, or wins, of 200 prompts; (values, prompts)."""
  rng = np.random.default_rng(0)
  size = np.arange(200) % 3 + 1 if kind == 'clustered' else np.ones(200, int)
  prompts = np.repeat(np.arange(200), size)
  margin = rng.normal(2, 1.5, 200)[prompts] + rng.normal(0, 1, len(prompts))
  if kind == 'wins':
    return (margin > 0).astype(float), prompts
  return np.log1p(np.exp(-margin)), prompts


@pytest.mark.parametrize('kind', ['losses', 'clustered', 'wins'])
def test_means_and_shares_are_near_bca(kind):
  # On runs the ends were .003 to .120 widths apart; docs/results.md.
  values, prompts = _arrays(kind)
  interval = statistics.clustered_mean
  if kind == 'wins':
    interval = statistics.clustered_share
  ends = bootstraps.bca(values, prompts)
  beside = bootstraps.Beside(kind, interval(values, prompts), *ends)
  assert beside.apart < 0.15
  assert beside.ratio == pytest.approx(1, abs=0.06)


def test_bca_over_records_is_too_narrow_where_prompts_repeat():
  # The comparison sees a cluster that is left out.
  values = np.repeat(np.random.default_rng(1).normal(size=40), 5)
  ours = statistics.clustered_mean(values, np.repeat(np.arange(40), 5))
  low, high = bootstraps.bca(values, np.arange(200))
  assert bootstraps.Beside('', ours, low, high).ratio < 0.5


@pytest.mark.slow
def test_rliable_agrees_over_prompts_and_is_narrow_over_few_seeds(tmp_path):
  if not os.environ.get('DPO_JAX_REAL_PARTS'):
    pytest.skip('set DPO_JAX_REAL_PARTS=1 to install rliable for this test')
  python = tmp_path / 'bin' / 'python'
  subprocess.run([sys.executable, '-m', 'venv', tmp_path], check=True)
  install = [python, '-m', 'pip', 'install', '-q', *rliable_intervals.PACKAGES]
  subprocess.run(install, check=True)
  values, prompts = _arrays('losses')
  seeds = np.array([0.22, 0.19, 0.21])
  matrices = {'prompts': values[:, None], 'seeds': seeds[:, None]}
  found = bootstraps.rliable(str(python), matrices)
  over_prompts = statistics.clustered_mean(values, prompts)
  beside = bootstraps.Beside('', over_prompts, *found['prompts']['mean'])
  assert beside.apart < 0.05
  # A percentile bootstrap of three values has sqrt(2 / 3) of their spread and
  # at most the normal quantile 1.96 in place of t's 4.30.
  over_seeds = statistics.mean_ci_t(seeds)
  beside = bootstraps.Beside('', over_seeds, *found['seeds']['mean'])
  assert beside.ratio < 0.4
