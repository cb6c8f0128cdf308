"""text -> HTML: elements, links and JSON blocks that no text can break out of.

Comes in: texts of any origin: labels, paths, answers of models. Goes out:
pieces of HTML in which they are text and nothing else. Knows nothing of runs.
"""

import base64
import html
import json
import unicodedata
import urllib.parse
from typing import Any, NamedTuple

from dpo_jax.storage import files

# Joiners and soft hyphens are letters of a script to readers; the other format
# characters reorder or hide text.
_KEPT = frozenset('\n\t\u200c\u200d\u00ad')
_HIDDEN = frozenset({'Cc', 'Cf', 'Cs', 'Co', 'Cn', 'Zl', 'Zp'})
_VOID = frozenset({'meta', 'link', 'br', 'input'})


class Html(NamedTuple):
  """Text that is HTML already."""

  text: str


def visible(text: str, most: int | None = None) -> str:
  """The text with control, bidirectional and unpaired characters spelt out.

  Args:
    text: any str, lone surrogates included.
    most: characters; a longer text says how many are left out.
  """
  more = '' if most is None or len(text) <= most else text[most:]
  shown = text if not more else text[:most]
  # Most texts have none: a check is faster than a loop over the letters.
  if not shown.isascii() or not shown.isprintable():
    shown = ''.join(
      repr(c)[1:-1]
      if c not in _KEPT and unicodedata.category(c) in _HIDDEN
      else c
      for c in shown
    )
  return f'{shown} … ({len(more):,} more characters)' if more else shown


def escape(text: Any) -> str:
  """A text for HTML, in an element or in a quoted attribute."""
  return html.escape(visible(str(text)), quote=True)


def element(name: str, *inside: Any, **attributes: Any) -> Html:
  """An element.

  Args:
    name: of the tag.
    inside: `Html`, or anything that becomes text; None is left out.
    attributes: `class_` and `for_` without the underscore, `data_at` with a
      hyphen; None is left out, True has no value.
  """
  parts = [name]
  for key, value in attributes.items():
    if value is None or value is False:
      continue
    key = key.rstrip('_').replace('_', '-')
    parts.append(key if value is True else f'{key}="{escape(value)}"')
  start = f'<{" ".join(parts)}>'
  if name in _VOID:
    return Html(start)
  return Html(f'{start}{joined(*inside).text}</{name}>')


def joined(*inside: Any) -> Html:
  """Pieces one after the other, each as in `element`."""
  return Html(
    ''.join(
      piece.text if isinstance(piece, Html) else escape(piece)
      for piece in inside
      if piece is not None
    )
  )


def label(text: Any) -> Html:
  """A text whose direction does not touch its neighbours'."""
  return element('bdi', text)


def href(path: str) -> str:
  """A relative path as a link: never a scheme, a host or a script."""
  parts = urllib.parse.quote(path.encode('utf-8', 'surrogateescape'))
  # `a:b` would be a scheme and `//host` another host.
  return f'./{parts.lstrip("/")}'


def json_block(name: str, value: Any) -> Html:
  """Data for the script of the page; ASCII, and without `<`, `>` and `&`."""
  text = json.dumps(value, ensure_ascii=True, allow_nan=False, indent=0)
  for character in '<>&':
    text = text.replace(character, f'\\u{ord(character):04x}')
  return Html(
    f'<script type="application/json" id="{name}">\n{text}\n</script>'
  )


def content_hash(text: str) -> str:
  """The source expression of an inline script or style."""
  digest = bytes.fromhex(files.bytes_digest([text.encode()]))
  return f"'sha256-{base64.b64encode(digest).decode()}'"
