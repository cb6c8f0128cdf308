"""The figure: what is drawn, how it is told apart, and the same bytes."""

import io
import itertools

import numpy as np
import pytest
from matplotlib import colors, image

from dpo_jax.results import cells, collect, plots


@pytest.fixture
def drawn(monkeypatch):
  """The matplotlib figures that `curves` makes, as it makes them."""
  made = []
  draw = plots._draw

  def keep(*args):
    made.append(draw(*args))
    return made[-1]

  monkeypatch.setattr(plots, '_draw', keep)
  return made


def _table(*paths):
  return cells.make_table(collect.collect(paths))


def test_panels_rows_and_seeds(make_run, tmp_path, drawn):
  for beta in (0.05, 0.5):
    for seed in range(3):
      make_run(
        f'{beta},{seed}',
        {'loss.beta': beta, 'seed': seed},
        final=beta + 0.1 * seed,
      )
  plots.curves(_table(tmp_path))
  panels = drawn[0].axes
  assert [panel.get_title(loc='left') for panel in panels[:3]] == [
    'loss',
    'accuracy',
    'margin',
  ]
  assert [panels[i].get_ylabel() for i in (0, 3)] == ['held-out', 'training']
  # two rows: three thin lines and a thick mean each
  lines = panels[0].get_lines()
  assert [line.get_linewidth() for line in lines] == [0.6] * 3 + [1.5] + [
    0.6
  ] * 3 + [1.5]
  np.testing.assert_allclose(lines[3].get_xydata(), [[0, 0.6931], [10, 0.15]])
  np.testing.assert_allclose(lines[0].get_ydata(), [0.6931, 0.05])
  (legend,) = drawn[0].legends
  texts = [text.get_text() for text in legend.get_texts()]
  assert texts == ['beta=0.05', 'beta=0.5']


def test_only_panels_that_have_something(make_run, drawn):
  lines = [{'step': s, 'split': 'eval', 'loss': 3 - 0.1 * s} for s in (0, 9)]
  plots.curves(_table(make_run('sft', {'stage': 'sft'}, lines=lines)))
  assert len(drawn[0].axes) == 1
  files = plots.curves(_table(make_run('none', lines=[], done=False)))
  assert files['curves.png'].startswith(b'\x89PNG')


def test_a_tie_at_step_0_is_no_accuracy(make_run, drawn):
  run = collect.read_run(make_run('a'))
  steps, values = plots.series(run, 'eval', 'rewards/accuracies')
  assert list(steps) == [10] and list(values) == [0.8]
  lines = [{'step': 0, 'split': 'eval', 'rewards/accuracies': 0.31}]
  run = collect.read_run(make_run('b', lines=lines))
  assert list(plots.series(run, 'eval', 'rewards/accuracies')[1]) == [0.31]


def test_training_is_averaged_in_bins_of_equal_size(make_run):
  lines = [{'step': s, 'split': 'train', 'loss': s % 2} for s in range(1, 66)]
  run = collect.read_run(make_run('a', lines=lines))
  steps, values = plots.series(run, 'train', 'loss')
  # 65 entries in bins of ceil(65 / 30) = 3: 21 of three and one of two
  assert len(steps) == 22
  assert (steps[0], values[0]) == (2, pytest.approx(2 / 3))
  assert (steps[-1], values[-1]) == (64.5, 0.5)
  assert np.dot(values, [3] * 21 + [2]) == pytest.approx(33)


def test_mean_series_uses_the_steps_that_all_seeds_have():
  one = (np.array([0.0, 5, 10]), np.array([1.0, 2, 3]))
  two = (np.array([0.0, 10, 20]), np.array([3.0, 5, 9]))
  steps, values = plots.mean_series([one, two])
  assert list(steps) == [0, 10] and list(values) == [2, 4]
  apart = (np.array([1.0]), np.array([7.0]))
  assert plots.mean_series([one, apart]) is one


def _lightness(colour) -> float:
  """CIE L* of an sRGB colour (IEC 61966-2-1; CIE 15)."""
  rgb = np.array(colors.to_rgb(colour))
  linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
  y = linear @ [0.2126, 0.7152, 0.0722]
  return 116 * np.cbrt(y) - 16


@pytest.mark.parametrize('num', [2, 3, 6, 12])
@pytest.mark.parametrize('key', ['loss.beta', 'optim.name'])
def test_rows_are_told_apart_without_colour(make_run, tmp_path, num, key):
  for i in range(num):
    value = 0.1 * (i + 1) if key == 'loss.beta' else f'name{i:02}'
    make_run(f'{i:02}', {key: value})
  looks = plots._looks(_table(tmp_path))
  assert len({look.colour for look in looks}) == num
  assert max(_lightness(look.colour) for look in looks) < 82  # seen on white
  for one, two in itertools.pairwise(looks):
    assert one.dashes != two.dashes and one.marker != two.marker
  if key == 'loss.beta' and num > 2:  # a scale: lighter is larger
    lightness = [_lightness(look.colour) for look in looks]
    assert lightness == sorted(lightness)
  elif num <= 6:
    assert len({look.dashes for look in looks}) == num


def test_the_same_runs_give_the_same_bytes(make_run, tmp_path):
  make_run('a')
  make_run('b', {'loss.beta': 0.3})
  files = plots.curves(_table(tmp_path))
  assert files == plots.curves(_table(tmp_path))
  assert set(files) == {'curves.pdf', 'curves.png'}
  assert files['curves.pdf'].startswith(b'%PDF')
  assert b'CreationDate' not in files['curves.pdf']
  assert b'/Type3' not in files['curves.pdf']
  pixels = image.imread(io.BytesIO(files['curves.png']))
  height, width, _ = pixels.shape
  assert width == 1680 and 600 < height < 1200  # 8.4 inches at 200 dots
  assert (pixels[..., :3] < 0.9).any()
