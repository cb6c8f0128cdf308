"""SVG of our figures -> SVG inside the page.

Comes in: the bytes of SVG files that matplotlib wrote. Goes out: the same
drawing as one element without scripts, styles, metadata or references to
anything outside the page. Elements, attributes and properties that are not
listed here are left out: the page's policy would refuse them.
"""

import re
from xml.etree import ElementTree

from dpo_jax.results.page import markup

_ELEMENTS = frozenset(
  'svg g path defs use rect circle line polyline polygon text tspan clipPath '
  'image linearGradient stop pattern symbol'.split()
)
_ATTRIBUTES = frozenset(
  'id d x y x1 x2 y1 y2 cx cy r rx ry width height viewBox transform points '
  'offset gradientUnits gradientTransform clip-path preserveAspectRatio '
  'clipPathUnits patternUnits'.split()
)
_PROPERTIES = frozenset(
  'fill fill-opacity fill-rule stroke stroke-width stroke-dasharray '
  'stroke-dashoffset stroke-linecap stroke-linejoin stroke-miterlimit '
  'stroke-opacity opacity text-anchor font-size font-family font-weight '
  'font-style stop-color stop-opacity clip-path clip-rule visibility '
  'image-rendering dominant-baseline'.split()
)
_INSIDE = re.compile(r'url\(#([\w.:-]+)\)')
_PNG = re.compile(r'data:image/png;base64,[A-Za-z0-9+/=\s]+')
_FONT = re.compile(r'(?P<before>.*?)(?P<size>[\d.]+)px\s+(?P<family>.+)')


def inline(data: bytes, name: str) -> markup.Html:
  """The drawing as an element of the page.

  Args:
    data: an SVG file.
    name: in front of every id: ids of two drawings must not meet.

  Raises:
    ValueError: not XML, or with entities of its own.
  """
  # An entity may name a file or grow without bound; matplotlib writes none.
  if b'<!ENTITY' in data:
    raise ValueError('an SVG with entities')
  try:
    root = ElementTree.fromstring(data)
  except ElementTree.ParseError as error:
    raise ValueError(f'no SVG ({error})') from error
  if _local(root.tag) != 'svg':
    raise ValueError('no SVG')
  prefix = re.sub(r'[^A-Za-z0-9]', '-', name) + '--'
  root.attrib.setdefault('viewBox', _view_box(root))
  for size in ('width', 'height'):
    root.attrib.pop(size, None)
  return _element(root, prefix)


def _element(node: ElementTree.Element, prefix: str) -> markup.Html | None:
  """An element and what is in it; None if it is not listed."""
  if not isinstance(node.tag, str) or _local(node.tag) not in _ELEMENTS:
    return None
  inside = [node.text if _local(node.tag) in ('text', 'tspan') else None]
  for child in node:
    inside.append(_element(child, prefix))
    if _local(node.tag) in ('text', 'tspan'):
      inside.append(child.tail)
  # markup.element turns `_` into `-`; no attribute of SVG has a `_`.
  return markup.element(
    _local(node.tag),
    *inside,
    **{key: value for key, value in _attributes(node, prefix)},
  )


def _attributes(node: ElementTree.Element, prefix: str):
  """Yields the listed attributes; a style becomes attributes."""
  for key, value in node.attrib.items():
    name = _local(key)
    if name == 'style':
      yield from _style(value, prefix)
    elif name == 'href':
      if value.startswith('#'):
        yield 'href', f'#{prefix}{value[1:]}'
      elif _local(node.tag) == 'image' and _PNG.fullmatch(value):
        yield 'href', ''.join(value.split())
    elif name == 'id':
      yield 'id', f'{prefix}{value}'
    elif name in _ATTRIBUTES or name in _PROPERTIES:
      yield from _value(name, value, prefix)


def _style(text: str, prefix: str):
  """Yields the properties of a style as attributes."""
  for part in text.split(';'):
    name, colon, value = (piece.strip() for piece in part.partition(':'))
    if name == 'font' and (match := _FONT.fullmatch(value)):
      yield 'font-size', f'{match["size"]}px'
      yield 'font-family', match['family'].replace('"', "'")
      for word in match['before'].split():
        kind = 'font-style' if word in ('italic', 'oblique') else 'font-weight'
        yield kind, word
    elif colon and name in _PROPERTIES:
      yield from _value(name, value, prefix)


def _value(name: str, value: str, prefix: str):
  """Yields an attribute unless its value refers to another file."""
  if 'url(' in value.lower():
    match = _INSIDE.fullmatch(value.strip())
    if match:
      yield name, f'url(#{prefix}{match[1]})'
  else:
    yield name, value


def _view_box(root: ElementTree.Element) -> str:
  """The box of a drawing that has only a size."""
  sizes = [
    re.match(r'[\d.]+', root.attrib.get(key, '')) for key in ('width', 'height')
  ]
  return '0 0 ' + ' '.join(size[0] if size else '100' for size in sizes)


def _local(name: str) -> str:
  return name.rpartition('}')[2]
