"""The budget of a template: costly operations are refused before they run."""

import pytest

from dpo_jax.data.text import budget, sandbox

MESSAGES = [{'role': 'user', 'content': 'hi'}] * 3


def render(source, **variables):
  template = sandbox.compile_template(source)
  return template.render({'messages': MESSAGES, **variables})


def growing(step):
  """A template that applies a step to ns.x 50 times."""
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


def test_a_budget_is_a_number_of_steps():
  # First here: without an end of steps, the bombs below take for ever.
  own = budget.Budget(steps=10)
  for _ in range(10):
    own.spend()
  with pytest.raises(budget.LimitError):
    own.spend()


@pytest.mark.parametrize('source', BOMBS)
def test_what_would_take_too_much_is_refused(source):
  refusals = (budget.LimitError, RecursionError, OverflowError)
  with pytest.raises(refusals):
    render(source)


def test_the_budget_is_that_of_one_rendering():
  template = sandbox.compile_template(
    '{% for i in range(90000) %}{% endfor %}done'
  )
  for _ in range(20):  # 1.8 million turns in all, more than MAX_STEPS
    assert template.render({}) == 'done'
