"""Markup: texts of any origin stay text, and links stay relative."""

import html
import json
import unicodedata

import pytest

from dpo_jax.results.page import markup

TEXTS = ('<b>&"\'', 'a\u202eb', '\ud800', 'é 中\u3000文', 'x' * 50, '@DATA@')


@pytest.mark.parametrize('text', TEXTS)
def test_a_text_in_an_element_is_that_text(text):
  made = markup.element('p', text, title=text).text
  inside = made.partition('>')[2].removesuffix('</p>')
  assert '<' not in inside and html.unescape(inside) == markup.visible(text)
  assert html.unescape(made).count('<b>') == 2 * text.count('<b>')


def test_hidden_characters_are_spelt_out_and_letters_are_not():
  assert markup.visible('a\u202e\u2066\x00\ud800') == (
    'a\\u202e\\u2066\\x00\\ud800'
  )
  # Line breaks, a no-break space, wide spaces, and the joiners of Persian and
  # of emoji are part of what people write.
  kept = 'é\n\t\xa0\u3000می\u200cخواهم 👩\u200d🔬'
  assert markup.visible(kept) == kept
  assert markup.visible('x' * 9, 4) == 'xxxx … (5 more characters)'
  assert markup.visible('xxxx', 4) == 'xxxx'


def test_visible_leaves_no_hidden_character():
  every = ''.join(map(chr, range(0x11000)))
  left = {
    unicodedata.category(c) for c in markup.visible(every) if c not in '\n\t'
  }
  assert not left & {'Cc', 'Cs', 'Co', 'Cn', 'Zl', 'Zp'}
  assert not {'\u202a', '\u202e', '\u2066', '\u2069'} & {*markup.visible(every)}


@pytest.mark.parametrize(
  'path, link',
  [
    ('../runs/a', './../runs/a'),
    ('javascript:alert(1)', './javascript%3Aalert%281%29'),
    ('//host/x', './host/x'),
    ('a b?c#d%', './a%20b%3Fc%23d%25'),
    ('é\udcff', './%C3%A9%FF'),
  ],
)
def test_links_have_no_scheme_and_no_host(path, link):
  assert markup.href(path) == link


@pytest.mark.parametrize('text', [*TEXTS, '</script><!--<script>', '\u2028'])
def test_a_json_block_ends_where_it_ends(text):
  block = markup.json_block('a', {text: [text]}).text
  inside = block.partition('\n')[2].removesuffix('\n</script>')
  assert block.isascii() and not set('<>&') & set(inside)
  assert json.loads(inside) == {text: [text]}


def test_content_hash_is_that_of_the_specification():
  # `printf "alert('Hello, world.');" | openssl dgst -sha256 -binary | base64`,
  # the example of the specification of Content-Security-Policy level 3.
  assert markup.content_hash("alert('Hello, world.');") == (
    "'sha256-qznLcsROx4GACP2dm0UCKCzCG+HiZ1guq6ZZDob/Tng='"
  )
