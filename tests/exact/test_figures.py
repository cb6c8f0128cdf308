"""Figures: the numbers behind them, the choice of lines, and the files."""

import math

import numpy as np

from dpo_jax.exact import choices, figures, study

SETTINGS = study.Settings(
  case='bradley_terry',
  losses=choices.read('all'),
  betas=(1.0, 0.1),
  sizes=(math.inf, 1000.0, 100.0),
  noises=(0.0,),
  samplings=('uniform', 'reference'),
  steps=(1000,),
  num_seeds=2,
)


def make_rows(settings=SETTINGS):
  rng, rows = np.random.default_rng(0), []
  measured = study.Row._fields[study.Row._fields.index('tv') :]
  for choice in settings.losses:
    for point in study.points(settings):
      for seed in range(settings.num_seeds):
        numbers = dict(zip(measured, rng.uniform(size=len(measured))))
        rows.append(study.Row(choice.word, *point, seed, **numbers))
  return rows


def test_panels_have_the_numbers_of_the_tables():
  rows = make_rows()
  data = figures.make_data(SETTINGS, rows, 'tv')
  beta, size = data['panels']
  assert (beta['x_label'], size['x_label']) == ('β', 'comparisons')
  first = beta['series'][0]
  assert first['label'] == 'DPO' and first['x'] == [0.1, 1.0]
  values = [
    row.tv
    for row in rows
    if row.loss == 'sigmoid' and row.beta == 0.1 and row.noise == 0
  ]
  assert first['y'][0] == np.mean(values)
  assert first['low'][0] < first['y'][0] < first['high'][0]
  # Infinity has no place on the axis.
  assert size['series'][0]['x'] == [100.0, 1000.0]


def test_as_many_lines_as_colours_those_of_the_defaults_first():
  data = figures.make_data(SETTINGS, make_rows(), 'tv')
  labels = [entry['label'] for entry in data['legend']]
  assert labels[:2] == ['DPO', 'IPO'] and len(labels) == 7
  assert len({entry['colour'] for entry in data['legend']}) == 7
  assert f'Shown: 7 of {len(SETTINGS.losses)} losses' in data['note']
  few = SETTINGS._replace(losses=choices.read('ipo,nll'))
  data = figures.make_data(few, make_rows(few), 'tv')
  assert len(data['legend']) == 2 and 'Shown' not in data['note']


def test_files_are_the_same_bytes_again():
  few = SETTINGS._replace(losses=choices.read('ipo,nll'))
  rows = make_rows(few)
  made = figures.draw(few, rows, ['tv'])
  assert made['figures/tv.pdf'].startswith(b'%PDF')
  assert made['figures/tv.png'].startswith(b'\x89PNG')
  assert made == figures.draw(few, rows, ['tv'])


def test_a_measure_without_two_numbers_has_no_figure():
  one = SETTINGS._replace(betas=(1.0,), sizes=(math.inf,))
  assert figures.draw(one, make_rows(one), ['tv']) == {}
