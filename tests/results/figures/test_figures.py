"""The drawings: sizes, fonts, legends, bytes, and which figures there are."""

import io
import itertools
import json

import numpy as np
import pytest
from matplotlib import image, text
from matplotlib.backends import backend_agg

from dpo_jax.losses import catalogue
from dpo_jax.results import figures, options
from dpo_jax.results.figures import panels, style
from dpo_jax.types import InputError

_LOSSES = [name for name in catalogue.read() if name != 'nll']


@pytest.fixture
def make_runs(make_run, tmp_path):
  """make_runs(num) -> that many groups, of 12 losses at most; no NaN."""

  def make(num):
    rng = np.random.default_rng(num)
    for i, (beta, loss) in enumerate(
      itertools.product((0.01, 0.03, 0.1, 0.3, 1.0), _LOSSES[:12])
    ):
      if i == num:
        break
      lines = [
        {'step': s, 'split': split, 'loss': 0.7 / (1 + s), **values}
        for split in ('eval', 'train')
        for s in (0, 5, 10)
        # Absent at step 5: a null in the file.
        for values in [
          {
            'rewards/accuracies': 0.5 + 0.02 * rng.normal() if s != 5 else None,
            'rewards/margins': beta * s,
            'kl': s / beta,
            'logps/chosen': -40.0 - s,
            'logps/rejected': -44.0 - s,
          }
        ]
      ]
      reward = rng.normal(size=(2, 24))
      arrays = {
        'uid': np.arange(24).astype('S16'),
        'policy_chosen': reward[0] - 40,
        'policy_rejected': reward[1] - 40,
        'reference_chosen': np.full(24, -40.0),
        'reference_rejected': np.full(24, -40.0),
        'reward_chosen': reward[0],
        'reward_rejected': reward[1],
        'chosen_tokens': rng.integers(5, 50, 24),
        'rejected_tokens': rng.integers(5, 50, 24),
      }
      changes = {'loss.terms': {loss: 1.0}, 'loss.beta': beta}
      path = make_run(f'runs/{i:02}', changes, lines=lines, arrays=arrays)
      sample = {name: {'mean': 1.0 + i, 'se': 0.1} for name in ('kl', 'reward')}
      facts = {'step': 10, 'reward': 'lexicon', 'metrics': sample}
      (path / 'frontier').mkdir()
      (path / 'frontier/step_10.json').write_text(json.dumps(facts))
    return tmp_path / 'runs'

  return make


def _data(report, *names):
  chosen = options.Options(figures=names or ('all',))
  return figures.figures_data([], report.table, chosen, report.folder)


def _boxes(drawing):
  """Extents in dots of all panels with their texts, and of the legends."""
  renderer = drawing.canvas.get_renderer()
  axes = [axis.get_tightbbox(renderer) for axis in drawing.axes]
  legends = [each.get_window_extent(renderer) for each in drawing.legends]
  return axes, legends


def _texts(drawing):
  return [
    each
    for each in drawing.findobj(text.Text)
    if each.get_visible() and each.get_text()
  ]


@pytest.mark.parametrize(
  'name, num, width',
  [
    ('curves', 1, 3.3),
    ('curves', 3, 6.9),
    ('curves', 9, 3.3),
    ('curves', 24, 3.3),
    ('curves', 60, 6.9),
    ('frontier', 60, 3.3),
    ('heat', 60, 3.3),
    ('heat', 24, 6.9),
    ('margins', 60, 3.3),
    ('beta', 24, 3.3),
  ],
)
def test_nothing_lies_over_the_data(make_runs, make_report, name, num, width):
  data = _data(make_report(make_runs(num)), name)[name]
  with style.settings():
    drawing = figures.KINDS[name].draw(data, width)
    backend_agg.FigureCanvasAgg(drawing)
    drawing.draw_without_rendering()
  axes, legends = _boxes(drawing)
  assert len(legends) == (name != 'heat')
  for box in legends:
    assert not any(box.overlaps(other) for other in axes)
  for one, two in itertools.combinations(axes, 2):
    # Neighbours may touch by the width of a line.
    assert not one.padded(-2).overlaps(two.padded(-2))
  for box in (*axes, *legends):
    assert -1 <= box.x0 and box.x1 <= drawing.bbox.x1 + 1
    assert -1 <= box.y0 and box.y1 <= drawing.bbox.y1 + 1
  sizes = [each.get_fontsize() for each in _texts(drawing)]
  assert min(sizes) >= 6 and max(sizes) <= 8
  assert drawing.get_size_inches()[0] == width
  assert drawing.get_size_inches()[1] < 9  # a page


def test_one_loss_and_many_betas_have_a_colour_bar(make_run, make_report):
  for beta in np.geomspace(0.01, 1, 12):
    path = make_run(f'runs/{beta:.3f}', {'loss.beta': round(beta, 3)})
  data = _data(make_report(path.parent), 'curves')['curves']
  assert data['legend'] == [] and data['scale']['log']
  with style.settings():
    drawing = panels.draw(data, 3.3)
    drawing.draw_without_rendering()
  bar = drawing.axes[-1]
  assert bar.get_xlabel() == 'β' and bar.get_xscale() == 'log'
  labels = [label.get_text() for label in bar.get_xticklabels()]
  assert labels == ['0.01', '0.1', '1']


def test_what_is_drawn_is_in_the_data(make_runs, make_report):
  data = _data(make_report(make_runs(3)), 'curves')['curves']
  with style.settings():
    drawing = panels.draw(data, 3.3)
  for axis, panel in zip(drawing.axes, data['panels']):
    lines = [line.get_xydata().tolist() for line in axis.get_lines()]
    expected = [
      [[x, y] for x, y in zip(each['x'], each['y'])] for each in panel['series']
    ]
    assert lines == expected
    assert panel['y_label'] == axis.get_ylabel()


def test_the_same_runs_give_the_same_bytes(make_run, make_report, monkeypatch):
  monkeypatch.setenv('SOURCE_DATE_EPOCH', '1')  # and the date says nothing
  lines = [{'step': s, 'split': 'eval', 'loss': 3 - s / 9} for s in (0, 9)]
  report = make_report(make_run('a', lines=lines))
  chosen = options.Options(figures=('curves',))
  files, data = figures.draw([], report.table, chosen, report.folder)
  monkeypatch.setenv('SOURCE_DATE_EPOCH', '86400')
  assert figures.draw([], report.table, chosen, report.folder) == (files, data)
  assert set(files) == {
    'figures/captions.md',
    *(
      f'figures/curves{ending}.{suffix}'
      for ending in ('', '_wide')
      for suffix in ('pdf', 'svg', 'png')
    ),
  }
  pdf, svg = files['figures/curves.pdf'], files['figures/curves.svg']
  assert pdf.startswith(b'%PDF') and b'CreationDate' not in pdf
  assert b'/Type3' not in pdf
  assert b'<dc:date>' not in svg and b'<svg' in svg
  for ending, width in (('', 660), ('_wide', 1380)):
    pixels = image.imread(io.BytesIO(files[f'figures/curves{ending}.png']))
    assert pixels.shape[1] == width  # at 200 dots per inch
    assert (pixels[..., :3] < 0.9).any()
  assert files['figures/captions.md'].startswith(b'## curves\n\nMetrics')


def test_a_users_matplotlibrc_changes_nothing(make_run, make_report):
  import matplotlib

  lines = [{'step': s, 'split': 'eval', 'loss': 3 - s / 9} for s in (0, 9)]
  report = make_report(make_run('a', lines=lines))
  data = _data(report, 'curves')['curves']
  with style.settings():
    expected = style.to_bytes(panels.draw(data, 3.3), 'png')
  with matplotlib.rc_context({'font.size': 20, 'axes.facecolor': 'red'}):
    with style.settings():
      assert style.to_bytes(panels.draw(data, 3.3), 'png') == expected


def test_the_data_is_plain_json_with_the_runs(make_runs, make_report):
  made = _data(make_report(make_runs(9)))
  # Those of these runs: others need two keys, or saved scores.
  others = {'beta', 'heat', 'swept', 'differences'}
  assert set(made) == set(figures.NAMES) - others
  text = json.dumps(made, allow_nan=False)
  assert json.loads(text) == made
  for name, one in made.items():
    assert one['caption'].strip(), name
    for panel in one['panels']:
      assert panel['x_label'] and isinstance(panel['title'], str)
      for series in panel['series']:
        assert all(run.startswith('runs/') for run in series['runs'])
        assert len(series['x']) == len(series['y']) and series['runs']


@pytest.mark.parametrize(
  'names, chosen',
  [
    (None, figures.DEFAULT),
    (('all',), figures.NAMES),
    ((), ()),
    (('heat', 'curves'), ('curves', 'heat')),
  ],
)
def test_which_figures_are_drawn(names, chosen):
  assert figures.choose(names) == chosen


def test_an_unknown_figure_is_refused():
  with pytest.raises(InputError, match="--figures: no figure is called 'bet'"):
    figures.choose(('bet',))
  with pytest.raises(InputError, match="did you mean 'beta'"):
    figures.choose(('bet',))


def test_long_labels_are_broken_into_lines(make_run, make_report):
  for name in ('one', 'two'):
    make_run(f'runs/{name}', {'data.train': f'/data/{name}-{"long" * 30}'})
  report = make_report(make_run('runs/three').parent)
  data = _data(report, 'curves')['curves']
  with style.settings():
    drawing = panels.draw(data, 3.3)
    backend_agg.FigureCanvasAgg(drawing)
    drawing.draw_without_rendering()
  (box,) = _boxes(drawing)[1]
  assert box.x1 <= drawing.bbox.x1 + 1
