"""Tables: means and intervals of rows, absent optima, CSV and JSON."""

import csv
import io
import json
import math

import numpy as np
import pytest
from scipy import stats

from dpo_jax.exact import choices, report, study

SETTINGS = study.Settings(
  case='bradley_terry',
  losses=choices.read('sigmoid,apo_zero'),
  betas=(1.0, 0.1),
  sizes=(math.inf, 100.0),
  noises=(0.0,),
  samplings=('uniform',),
  steps=(1000,),
  num_seeds=3,
)
BEST = (0.2, 0.3, 0.7)  # of the seeds


def make_rows():
  rows = []
  for choice in SETTINGS.losses:
    for point in study.points(SETTINGS):
      for seed, best in enumerate(BEST):
        own = math.nan if choice.name == 'apo_zero' or seed == 2 else 1e-5
        numbers = dict.fromkeys(('tv', 'kl', 'regret', 'reward'), 0.25)
        numbers |= {'reward_gap': 0.0, 'drift': 0.5, 'best': best, 'own': own}
        rows.append(study.Row(choice.word, *point, seed, **numbers))
  return rows


def test_tables():
  text = report.markdown(SETTINGS, make_rows(), ['best', 'own'])
  half = stats.t.ppf(0.975, 2) * np.std(BEST, ddof=1) / np.sqrt(3)
  assert f'| DPO | 0.400 ± {half:.3f} | 0.400 ± {half:.3f} |' in text
  # Infinity is the last column, whatever is the base; single values have none.
  assert '| loss | 100 | ∞ |' in text and '| loss | 0.1 | 1 |' in text
  assert 'by beta' in text and 'by comparisons' in text
  assert 'by flipped labels' not in text and 'by updates' not in text
  assert '| DPO | 1e-05 (2 seeds) | 1e-05 (2 seeds) |' in text
  assert '| APO-zero | – | – |' in text
  assert '| DPO | solved | 6/9 | 1.0e-05 | 1.0e-05 |' in text
  assert '| APO-zero | not known | 0/9 | – | – |' in text
  assert 'beta 1, comparisons ∞, flipped labels 0, pairs drawn from' in text


def test_a_study_of_one_point_has_one_table():
  settings = SETTINGS._replace(betas=(1.0,), sizes=(math.inf,))
  text = report.markdown(settings, make_rows(), ['tv'])
  assert '## Total variation to π*, by beta' in text
  assert '| DPO | 0.250 ± 0.000 |' in text


def test_files_hold_every_number():
  rows = make_rows()
  files = report.files(SETTINGS, rows, ['tv'])
  assert set(files) == {'exact.md', 'exact.csv', 'exact.json'}
  lines = list(csv.DictReader(io.StringIO(files['exact.csv'].decode())))
  assert len(lines) == len(rows)
  assert lines[0]['best'] == '0.2' and lines[-1]['own'] == ''
  said = json.loads(files['exact.json'])
  assert said['settings']['losses']['sigmoid'] == 'DPO'
  assert said['settings']['sizes'] == ['inf', 100.0]
  assert said['rows'][0]['best'] == 0.2 and said['rows'][-1]['own'] is None
  assert files == report.files(SETTINGS, rows, ['tv'])


@pytest.mark.parametrize('measure', study.MEASURES)
def test_every_measure_has_a_table(measure):
  assert measure in study.Row._fields
  assert '## ' in report.markdown(SETTINGS, make_rows(), [measure])
