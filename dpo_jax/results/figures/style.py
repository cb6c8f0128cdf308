"""Style of all figures: widths, fonts, colours, line styles, markers, bytes.

Comes in: a matplotlib figure. Goes out: its bytes as PDF, SVG and PNG, without
a date, so that the same runs and libraries give the same bytes. Knows nothing
of runs. Needs no display and writes no files.
"""

import io
from collections.abc import Callable

import matplotlib
from matplotlib import figure

# Print widths in inches by the ending of the file name: one column of a
# two-column page, and both.
WIDTHS = {'': 3.3, '_wide': 6.9}
FORMATS = ('pdf', 'svg', 'png')
DOTS_PER_INCH = 200  # of the PNG
# Sizes in points, as printed.
BASE, SMALL, SMALLEST = 7.5, 7, 6.5
# Okabe and Ito's colours (jfly.uni-koeln.de/color), which colour-blind readers
# can tell apart; without their yellow, which vanishes on white. In this order,
# neighbours differ in lightness too.
COLOURS = (
  '#0072B2',
  '#E69F00',
  '#000000',
  '#009E73',
  '#56B4E9',
  '#D55E00',
  '#CC79A7',
)
DASHES = {
  'solid': (0, ()),
  'dashed': (0, (5, 1.6)),
  'dotted': (0, (1.2, 1.2)),
  'dash-dot': (0, (6, 1.6, 1.2, 1.6)),
  'long': (0, (10, 2)),
  'dash-dot-dot': (0, (6, 1.2, 1.2, 1.2, 1.2, 1.2)),
}
LINES = {**DASHES, '': 'none'}  # '' = markers alone
MARKERS = 'osD^vph'
INK, GREY, PALE, GRID = '#333333', '#6b6b6b', '#c4c4c4', '#e6e6e6'
SCALE = 'viridis'
SCALE_END = 0.82  # viridis up to here: its yellow vanishes on white

_SETTINGS = {
  'text.usetex': False,
  'font.family': 'sans-serif',
  'font.sans-serif': ['DejaVu Sans'],  # comes with matplotlib
  'font.size': BASE,
  'axes.titlesize': BASE,
  'axes.labelsize': BASE,
  'xtick.labelsize': SMALL,
  'ytick.labelsize': SMALL,
  'legend.fontsize': SMALL,
  'legend.title_fontsize': SMALLEST,
  'axes.titlelocation': 'left',
  'axes.titlepad': 3,
  'axes.labelpad': 2,
  'axes.labelcolor': INK,
  'axes.edgecolor': GREY,
  'axes.linewidth': 0.6,
  'axes.spines.top': False,
  'axes.spines.right': False,
  'axes.axisbelow': True,
  'axes.grid': True,
  'axes.formatter.useoffset': False,
  'axes.formatter.limits': (-4, 5),
  'grid.color': GRID,
  'grid.linewidth': 0.6,
  'lines.linewidth': 1.2,
  'lines.markersize': 3.4,
  'xtick.color': GREY,
  'ytick.color': GREY,
  'xtick.labelcolor': INK,
  'ytick.labelcolor': INK,
  'xtick.major.width': 0.6,
  'ytick.major.width': 0.6,
  'xtick.major.size': 2.5,
  'ytick.major.size': 2.5,
  'xtick.major.pad': 2,
  'ytick.major.pad': 2,
  'xtick.minor.size': 0,
  'ytick.minor.size': 0,
  'figure.constrained_layout.h_pad': 0.03,
  'figure.constrained_layout.w_pad': 0.03,
  'figure.facecolor': 'white',
  'legend.frameon': False,
  'legend.handlelength': 2.6,
  'legend.columnspacing': 1.2,
  'legend.labelspacing': 0.3,
  'legend.borderpad': 0.2,
  'pdf.fonttype': 42,  # TrueType: journals refuse Type 3
  'svg.fonttype': 'path',  # the same letters on every machine
}


def settings(salt: str = ''):
  """Context in which figures are made: a user's matplotlibrc changes nothing.

  Args:
    salt: begins the ids of an SVG, so that two on one page do not clash.
  """
  salted = {**_SETTINGS, 'svg.hashsalt': f'dpo_jax {salt}'}
  return matplotlib.rc_context({**matplotlib.rcParamsDefault, **salted})


def render(
  name: str, make: Callable[[float], figure.Figure]
) -> dict[str, bytes]:
  """Draws a figure at every width and returns its files.

  Args:
    name: of the figure, such as 'beta'.
    make: width in inches -> figure.

  Returns:
    {'figures/beta.pdf': bytes, ..., 'figures/beta_wide.png': bytes}.
  """
  files = {}
  for ending, width in WIDTHS.items():
    with settings(f'{name}{ending}'):
      drawing = make(width)
      # Places are found once, not once per format.
      drawing.draw_without_rendering()
      drawing.set_layout_engine('none')
      for suffix in FORMATS:
        files[f'figures/{name}{ending}.{suffix}'] = to_bytes(drawing, suffix)
  return files


def to_bytes(drawing: figure.Figure, suffix: str) -> bytes:
  """A figure as a file; a date, or a version, would change the bytes."""
  metadata = {
    'pdf': {'CreationDate': None, 'Creator': None, 'Producer': None},
    'svg': {'Date': None, 'Creator': None},
    'png': {'Software': None},
  }[suffix]
  file = io.BytesIO()
  drawing.savefig(file, format=suffix, dpi=DOTS_PER_INCH, metadata=metadata)
  return file.getvalue()


def shade(position: float) -> str:
  """Colour of a number on a scale, dark to light.

  Args:
    position: 0 = the least, 1 = the largest.
  """
  colour = matplotlib.colormaps[SCALE](SCALE_END * position)
  return matplotlib.colors.to_hex(colour)
