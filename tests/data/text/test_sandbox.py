"""Hostile templates are refused, and harmless ones render as in jinja2."""

import jinja2
import pytest

from dpo_jax.data.text import sandbox

MESSAGES = [{'role': 'user', 'content': 'hi'}] * 3


def render(source, **variables):
  template = sandbox.compile_template(source)
  return template.render({'messages': MESSAGES, **variables})


PRIVATE = [
  '{{ "".__class__ }}',
  '{{ "" | attr("__class__") }}',
  '{{ messages["__init__"] }}',
  '{{ [""] | map(attribute="__class__") | list }}',
  '{{ "{0.__class__}".format("") }}',
  '{{ cycler.__init__.__globals__ }}',
  '{{ dict.__call__ }}',
  '{{ raise_exception.__globals__ }}',
  '{% for m in messages %}{{ loop._iterable }}{% endfor %}',
  '{% set ns = namespace(_x=1) %}',
  '{% set ns = namespace() %}{% set ns._x = 1 %}',
  '{{ messages.append(1) }}',
  '{% if messages[0].update({}) %}{% endif %}',
]


@pytest.mark.parametrize('source', PRIVATE)
def test_private_and_changing_attributes_are_refused(source):
  with pytest.raises(jinja2.exceptions.SecurityError):
    render(source)


def test_there_are_no_files_and_no_lorem():
  with pytest.raises((jinja2.TemplateError, TypeError)):
    render('{% include "/etc/passwd" %}')
  with pytest.raises(jinja2.UndefinedError):
    render('{{ lipsum(1) }}')


def test_counted_loops_are_loops_still():
  # Source: jinja2's documentation of `loop`, `else`, `if`, break, continue.
  source = (
    '{% for x in a if x != 2 %}{{ loop.index }}/{{ loop.length }}:{{ x }}'
    '{{ "." if loop.last else loop.nextitem }}{% endfor %}|'
    '{% for k, v in {"p": 1}.items() %}{{ k }}{{ v }}{% endfor %}|'
    '{% for x in [] %}{% else %}none{% endfor %}|'
    '{% for x in missing %}{% endfor %}|'
    '{% for x in a %}{% if x == 2 %}{% continue %}{% endif %}'
    '{% if x == 4 %}{% break %}{% endif %}{{ x }}{% endfor %}|'
    '{% for x in [1, [2, [3]]] recursive %}'
    '{{ loop(x) if x is iterable else x }}{% endfor %}'
  )
  assert render(source, a=[1, 2, 3, 4]) == '1/3:132/3:343/3:4.|p1|none||13|123'


def test_macros_filters_and_joins_give_what_jinja_gives():
  source = (
    '{% macro f(x) %}[{{ x | upper }}]{{ caller() if caller }}{% endmacro %}'
    "{{ f('a') }}{% call f('b') %}c{% endcall %}"
    "{{ 1 ~ none ~ 'x' ~ (2 ~ 3) }}{{ ['a', 1] | join('-') }}"
    "{{ messages | map(attribute='role') | unique | join }}"
    "{{ '%s-%02d' % ('q', 7) }}{{ '{:>3}'.format('z') }}{{ 'a' * 3 }}"
    "{{ '%s:%.1f' | format('p', 2) }}{{ '%(a)s' | format(a='k') }}"
    "{{ 'a b'.split() }}{{ {'b': 1, 'a': '<é>'} | tojson }}"
  )
  expected = (
    '[A][B]c1Nonex23a-1userq-07  zaaap:2.0k[\'a\', \'b\']{"b": 1, "a": "<é>"}'
  )
  assert render(source) == expected


@pytest.mark.parametrize(
  ('name', 'listed'), [('tojson', '["user", "user", "user"]'), ('length', '3')]
)
def test_what_map_returns_is_no_list_yet(name, listed):
  # Source: transformers 5.23.0 raises TypeError without `| list`.
  mapped = "{{ messages | map(attribute='role') | %s }}"
  with pytest.raises(TypeError, match='generator'):
    render(mapped % name)
  assert render(mapped % f'list | {name}') == listed
