"""Drawings: matplotlib's SVG goes through, anything that acts does not."""

import io
import re

import matplotlib
import numpy as np
import pytest
from matplotlib import figure

from dpo_jax.results.page import drawings

_HEAD = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink='
_HEAD += '"http://www.w3.org/1999/xlink" width="90pt" height="60pt">'


def _svg(inside: str) -> bytes:
  return f'{_HEAD}{inside}</svg>'.encode()


@pytest.fixture(scope='module')
def real():
  """A drawing with lines, a clip path, markers, a picture and a legend."""
  drawing = figure.Figure(figsize=(3, 2))
  panel, other = drawing.subplots(1, 2)
  panel.plot([1, 2], [3, 4], 'o--', label='β <é>')
  panel.legend()
  other.imshow(np.arange(4).reshape(2, 2))
  made = {}
  for kind in ('path', 'none'):
    with matplotlib.rc_context({'svg.fonttype': kind}):
      data = io.BytesIO()
      drawing.savefig(data, format='svg')
      made[kind] = data.getvalue()
  return made


@pytest.mark.parametrize('kind', ['path', 'none'])
def test_a_drawing_of_matplotlib_keeps_what_is_drawn(real, kind):
  text = drawings.inline(real[kind], 'a b').text
  given = real[kind].decode()
  assert text.startswith('<svg ') and ' viewBox="0 0 216 144"' in text
  for name in ('path', 'use', 'clipPath', 'image', 'text'):
    count = len(re.findall(f'<{name}[ >]', given))
    assert len(re.findall(f'<{name}[ >]', text)) == count, name
  # A policy without 'unsafe-inline' refuses attributes of style.
  for word in ('style', 'http', '<metadata', 'xmlns', '<!', 'xlink'):
    assert word not in text
  assert re.search('stroke="#1f77b4"', text)
  assert ('β &lt;é&gt;' in text) == (kind == 'none')
  assert kind == 'path' or re.search('font-size="10px" font-family="', text)


def test_ids_are_the_drawings_own(real):
  text = drawings.inline(real['path'], 'a b').text
  ids = set(re.findall(' id="([^"]*)"', text))
  assert ids and all(name.startswith('a-b--') for name in ids)
  used = re.findall(' href="#([^"]*)"|url\\(#([^)]*)\\)', text)
  assert used and {one or two for one, two in used} <= ids


@pytest.mark.parametrize(
  'inside',
  [
    '<script>harm</script>',
    '<style>@import "harm"</style>',
    '<foreignObject><body>harm</body></foreignObject>',
    '<a href="harm"><path d="harm"/></a>',
    '<path onclick="harm"/>',
    '<image xlink:href="https://harm/x.png"/>',
    '<image href="data:image/svg+xml;base64,harm"/>',
    '<use href="other.svg#harm"/>',
    '<path style="fill: url(https://harm)"/>',
    '<path fill="URL( https://harm )"/>',
    '<path style="background-image: harm; d: harm"/>',
    '<animate href="#harm"/>',
    '<set attributeName="href" to="harm"/>',
    '<metadata>harm</metadata>',
    '<!-- harm -->',
  ],
)
def test_what_acts_or_refers_outside_is_left_out(inside):
  text = drawings.inline(_svg(f'<g>{inside}<rect x="1"/></g>'), 'a').text
  assert 'harm' not in text and '<rect x="1">' in text


@pytest.mark.parametrize(
  'data',
  [
    b'',
    b'<svg',
    b'<html></html>',
    b'<!DOCTYPE svg [<!ENTITY a "aaaa">]><svg>&a;</svg>',
  ],
)
def test_what_is_no_drawing_is_refused(data):
  with pytest.raises(ValueError):
    drawings.inline(data, 'a')
