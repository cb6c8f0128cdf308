"""Looks: colour = loss, dashes and marker = beta, for any number of rows."""

import itertools

import numpy as np
import pytest
from matplotlib import colors

from dpo_jax.losses import catalogue
from dpo_jax.results.figures import looks, style

_LOSSES = list(catalogue.read())


@pytest.fixture
def make_plan(make_run, make_report, tmp_path):
  """make_plan(losses, betas) -> the plan of one run for each of both."""

  def make(num_losses, num_betas, **options):
    for i in range(num_losses):
      for beta in np.geomspace(0.01, 1, num_betas) if num_betas > 1 else [0.1]:
        accuracy = 0.5 + 0.01 * i + 0.1 * beta
        end = {'rewards/accuracies': accuracy, 'loss': 0.4}
        make_run(
          f'runs/{i:02},{beta:.3g}',
          {'loss.terms': {_LOSSES[i]: 1.0}, 'loss.beta': float(f'{beta:.3g}')},
          lines=[{'step': 9, 'split': 'eval', **end}],
        )
    return looks.make_plan(make_report(tmp_path / 'runs').table, **options)

  return make


def _lightness(colour) -> float:
  """CIE L* of an sRGB colour (IEC 61966-2-1; CIE 15)."""
  rgb = np.array(colors.to_rgb(colour))
  linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
  y = linear @ [0.2126, 0.7152, 0.0722]
  return 116 * np.cbrt(y) - 16


def test_colour_is_the_loss_and_the_line_is_beta(make_plan):
  plan = make_plan(3, 3)
  assert len(plan.looks) == 9 and plan.note == '' and plan.scale is None
  for one, two in itertools.combinations(plan.looks, 2):
    assert (one.colour == two.colour) == (one.loss == two.loss)
    for field in ('dashes', 'marker'):
      same = getattr(one, field) == getattr(two, field)
      assert same == (one.beta == two.beta)
  # three losses, then three betas in grey: fewer entries than rows
  labels = [look.label for look in plan.entries]
  assert labels[3:] == ['β = 0.01', 'β = 0.1', 'β = 1']
  names = [catalogue.read()[name].label for name in _LOSSES[:3]]
  assert labels[:3] == sorted(names)
  assert {look.colour for look in plan.entries[3:]} == {style.GREY}


def test_losses_of_one_beta_differ_in_dashes_too(make_plan):
  plan = make_plan(5, 1)
  assert len({look.colour for look in plan.looks}) == 5
  assert len({(look.dashes, look.marker) for look in plan.looks}) == 5


@pytest.mark.parametrize(
  'losses, betas, shown', [(1, 1, 1), (5, 3, 5), (12, 2, 7), (24, 1, 7)]
)
def test_what_is_shown_of_many_rows(make_plan, losses, betas, shown):
  plan = make_plan(losses, betas)
  assert len(plan.looks) == shown
  assert len(plan.looks) + len(plan.context) == losses * betas
  assert len({look.colour for look in plan.looks}) == shown
  assert {look.colour for look in plan.context} <= {style.PALE}
  if plan.context:
    assert 'highest held-out accuracy' in plan.note
    assert plan.entries[-1].label == looks.CONTEXT
    # the largest beta has the highest accuracy, and the last losses
    assert {look.beta for look in plan.looks} == {1.0 if betas > 1 else 0.1}
    labels = {look.loss for look in plan.looks}
    names = _LOSSES[losses - shown : losses]
    assert labels == {catalogue.read()[name].label for name in names}


def test_every_row_of_the_best_losses(make_plan):
  plan = make_plan(5, 3, every=True)
  assert len(plan.looks) == 15 and not plan.context and not plan.note
  assert len(plan.entries) == 8


@pytest.mark.parametrize('num', [3, 6, 12])
def test_one_loss_has_shades_of_beta(make_plan, num):
  plan = make_plan(1, num)
  ordered = sorted(plan.looks, key=lambda look: look.beta)
  lightness = [_lightness(look.colour) for look in ordered]
  assert lightness == sorted(lightness) and max(lightness) < 82  # on white
  assert (plan.scale is None) == (num <= 6)
  if plan.scale:
    assert plan.scale == (0.01, 1.0) and not plan.entries
  else:
    for one, two in itertools.pairwise(plan.looks):
      assert one.dashes != two.dashes and one.marker != two.marker


def test_neighbours_of_the_palette_differ_in_lightness():
  lightness = [_lightness(colour) for colour in style.COLOURS]
  assert max(lightness) < 75
  gaps = [abs(a - b) for a, b in itertools.pairwise(lightness)]
  assert min(gaps) > 6


def test_what_the_loss_implies_is_no_label(make_run, make_report, tmp_path):
  for loss, smoothing in (('sigmoid', 0.0), ('ipo', None)):
    for beta in (0.1, 0.5):
      make_run(
        f'runs/{loss},{beta}',
        {
          'loss.terms': {loss: 1.0},
          'loss.beta': beta,
          'loss.label_smoothing': smoothing,
        },
      )
  plan = looks.make_plan(make_report(tmp_path / 'runs').table)
  assert {look.label for look in plan.looks} == {
    'DPO, β = 0.1',
    'DPO, β = 0.5',
    'IPO, β = 0.1',
    'IPO, β = 0.5',
  }


def test_labels_of_losses():
  label = looks.loss_label
  assert label({'loss': {'terms': {'sigmoid': 1.0, 'ipo': 0.0}}}) == 'DPO'
  mixed = {'loss': {'terms': {'sigmoid': 1, 'nll': 0.2}}}
  assert label(mixed) == 'DPO + 0.2 NLL (SFT)'
  assert label({'loss': {'terms': {'mine': 1.0}}}) == 'mine'
  assert label({}) == 'no loss'


def test_a_row_alone_is_called_by_its_folder(make_run, make_report):
  plan = looks.make_plan(make_report(make_run('lonely')).table)
  assert plan.looks[0].label == 'lonely'
