"""Hostile and clumsy templates: refused fast, and nothing leaks."""

import jinja2
import pytest

from dpo_jax.data.text import budget, sandbox

MESSAGES = [{'role': 'user', 'content': 'hi'}] * 3


def render(source, **variables):
  template = sandbox.compile_template(source)
  return template.render({'messages': MESSAGES, **variables})


def growing(step):
  """A template that applies a step to ns.x fifty times."""
  return (
    "{% set ns = namespace(x='aa') %}{% for i in range(50) %}"
    f'{step}{{% endfor %}}{{{{ ns.x }}}}'
  )


# Each of these would take minutes or gigabytes: 2**50 characters, 10**10 turns.
BOMBS = [
  '{{ "a" * 10**9 }}',
  '{{ 9 ** (9**9) }}',
  '{{ [[1] * 1000000] * 1000000 }}',
  '{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}'
  '{% endfor %}',
  '{% for i in range(9) recursive %}{{ loop(range(9999)) }}{% endfor %}',
  '{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}'
  '{% endmacro %}{{ f(60) }}',
  '{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}',
  '{{ range(10**9) }}',
  growing('{% set ns.x = ns.x ~ ns.x %}'),
  growing("{% set ns.x = ('b' ~ (ns.x ~ ns.x)) ~ 'a' %}"),
  growing('{% set ns.x = [ns.x ~ ns.x][0] %}'),
  growing('{% set ns.x = ns.x + ns.x %}'),
  growing('{% set ns.x = [ns.x, ns.x] | join %}'),
  growing('{% set ns.x = ns.x.join([ns.x, ns.x]) %}'),
  growing("{% set ns.x = ns.x.replace('a', 'aaaa') %}"),
  growing("{% set ns.x = ns.x | replace('a', 'aaaa') %}"),
  growing("{% set ns.x = '{0}{0}'.format(ns.x) %}"),
  growing("{% set ns.x = '%s%s' % (ns.x, ns.x) %}"),
  growing("{% set ns.x = '%s%s' | format(ns.x, ns.x) %}"),
  growing('{% set x %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = x %}'),
  growing('{% set ns.x = [ns.x, ns.x, ns.x] %}'),
  growing('{% set ns.x = [ns.x, ns.x] %}') + '{{ ns.x | tojson }}',
  growing('{% set ns.x = [ns.x, ns.x] %}') + '{{ ns.x | string | length }}',
  '{{ "a" | center(10**9) }}',
  '{{ "a".ljust(10**9) }}',
  '{{ "{:>1000000000}".format("a") }}',
  '{{ "{:{}}".format("a", 10**9) }}',
  '{{ "%1000000000d" % 3 }}',
  '{{ "%*d" % (10**9, 1) }}',
  '{{ "%1000000000d" | format(3) }}',
  '{{ "%*d" | format(10**9, 1) }}',
  '{{ "%(n)1000000000d" | format(n=3) }}',
  '{{ "\t".expandtabs(10**9) }}',
  '{{ 1.5 | round(10**8) }}',
  '{{ "a\nb" | indent(10**9) }}',
  '{{ messages | tojson(indent=10**9) }}',
  '{% filter center(10**9) %}a{% endfilter %}',
  '{{ "a".translate({97: "b" * 1000}) }}',
  '{{ [1] | batch(10**9, 0) | list }}',
  '{{ range(99999) | map("center", 99999) | list }}',
  '{{ "aa"*4000000 }}{{ "aa"*4000000 }}{{ "aa"*4000000 }}',
]


@pytest.mark.parametrize('source', BOMBS)
def test_what_would_take_too_much_is_refused(source):
  refusals = (budget.LimitError, RecursionError, OverflowError)
  with pytest.raises(refusals):
    render(source)


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


def test_the_budget_is_that_of_one_rendering():
  template = sandbox.compile_template(
    '{% for i in range(90000) %}{% endfor %}done'
  )
  for _ in range(20):  # 1.8 million turns in all, more than MAX_STEPS
    assert template.render({}) == 'done'


def test_counted_loops_are_loops_still():
  # jinja2's own documentation of `loop`, `else`, `if`, break and continue.
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
  # transformers 5.23.0: TypeError for both, and this after `| list`.
  mapped = "{{ messages | map(attribute='role') | %s }}"
  with pytest.raises(TypeError, match='generator'):
    render(mapped % name)
  assert render(mapped % f'list | {name}') == listed
