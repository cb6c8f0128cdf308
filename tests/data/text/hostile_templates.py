"""Hostile templates: each must end within 10 s and 500 MB.

  python tests/data/text/hostile_templates.py 200

runs all constructions in a child process each, and prints those that took
longer or more, and how long searches take for their price. Every operation of
the language meets every value that is large, shared, deep, or self-referential,
up to a million times in one rendering.
"""

import itertools
import json
import resource
import subprocess
import sys
import time

from dpo_jax.data.text import budget, costs, templates
from dpo_jax.types import InputError

MAX_SECONDS, MAX_BYTES = 10, 500 * 2**20

# Statements that put something costly in a, b and ns, with the names in which
# it may be written: {a} of a template below.
VALUES = {
  'text': "{% set a = 'ab' * 4500000 %}{% set b = 'ab' * 2000000 ~ 'c' %}",
  'short text': "{% set a = 'a' * 2400 %}{% set b = 'a' * 1199 ~ 'b' %}",
  'wide text': "{% set a = '\U0001f600 <' * 3000000 %}{% set b = a[1:] %}",
  'list': '{% set a = range(99999) | list %}{% set a = a + a + a + a %}'
  '{% set b = a[1:] %}',
  'words': "{% set a = ('aa ' * 300000).split(' ') %}{% set b = a[1:] %}",
  'shared': '{% set ns = namespace(a=[1], b=[1]) %}{% for i in range(60) %}'
  '{% set ns.a = [ns.a, ns.a] %}{% set ns.b = [ns.b, ns.b] %}{% endfor %}'
  '{% set a, b = ns.a, ns.b %}',
  'tuples': '{% set ns = namespace(a=(1,), b=(1,)) %}{% for i in range(60) %}'
  '{% set ns.a = (ns.a, ns.a) %}{% set ns.b = (ns.b, ns.b) %}{% endfor %}'
  '{% set a, b = ns.a, ns.b %}',
  'deep': '{% set ns = namespace(a=(), b=()) %}{% for i in range(90000) %}'
  '{% set ns.a = (ns.a,) %}{% set ns.b = (ns.b,) %}{% endfor %}'
  '{% set a, b = ns.a, ns.b %}',
  'dict': '{% set a = dict(range(90000) | batch(2)) %}'
  '{% set b = dict(range(90000) | batch(2)) %}',
  'namespace': '{% set a = namespace() %}{% set a.a = [a, a] %}'
  '{% set b = a.a %}',
  'integer': "{% set a = ('f' * 9000000) | int(base=16) %}{% set b = a %}",
  'digits': "{% set a = '9' * 4200 %}{% set b = a | int %}",
  'generator': "{% set a = range(99999) | map('string') %}{% set b = 'x' %}",
  'markup': "{% set a = ('<' * 1500000) | e %}{% set b = a[1:] %}",
  'colliding': '{% set a %}{% for i in range(50000) %}'
  '{{ i * 2305843009213693951 }},{% endfor %}{% endset %}'
  "{% set a = a.split(',') | map('int') | list %}{% set b = a %}",
}
EXPRESSIONS = (
  *('a == b', 'a != b', 'a < b', 'a in b', 'b in a', 'a in [b]', '[a] == [b]'),
  *('a < b < a', "a == b == 'x'", '{a: 1}', '{1: 2}[a]', 'a[1:]', 'a[::-1]'),
  *('a[::2]', 'a + b', 'a * 3', 'a ~ b', 'a - b', 'a // b', 'a / b', 'a % b'),
  *('a ** b', '-a', 'not a', '[a, b, a, b]', '(a, b) in [(b, a)]', 'a is eq b'),
  *('a is in b', 'a is lower', 'a is upper', 'a is odd', 'a is divisibleby b'),
  *('a is sequence', 'a is iterable', 'a is filter', 'a is sameas b'),
  *("'{0}{0}'.format(a)", "'{:{w[0]}}'.format(5, w=[3000000000])"),
  *("'{0!r}'.format(a)", "'{0!a}'.format(a)", "'%s%s' % (a, b)"),
  *("'%*d' % (999999999, 1)", "'%999999999d' is odd", 'a.format(b)'),
  *("'x'.join(a)", 'a.count(b)', 'a.find(b)', 'a.rfind(b)', 'a.index(b)'),
  *('a.rindex(b)', 'a.split(b)', 'a.rsplit(b)', 'a.split()', 'a.splitlines()'),
  *('a.partition(b)', 'a.rpartition(b)', 'a.strip(b)', 'a.replace("a", b)'),
  *('a.replace("", "xxxx")', 'a.expandtabs(9)', 'a.center(9999999)'),
  *('a.zfill(9999999)', 'a.title()', 'a.upper()', 'a.encode()', 'a.items()'),
  *('a.copy()', 'a.get(b)', 'a.keys() - a.keys()', 'a.startswith(b)'),
  *('(5).to_bytes(999999999, "big")', 'a.to_bytes(999999999, "big")'),
  *('dict.fromkeys(a)', 'dict(a)', 'namespace(a)', 'range(10**9)'),
  *('loop.changed(a)', 'loop.cycle(a, b)', 'cycler(*a).next()', 'joiner(a)()'),
  *('strftime_now("%999999999d")', 'strftime_now(a)', 'f(*a)', 'f(**a)'),
  *('self.x()', 'f(a)', 'raise_exception(a)'),
)
FILTERS = (
  *('abs', 'attr("x")', 'batch(1)', 'batch(9999999, 0)', 'capitalize'),
  *('center(9999999)', 'count', 'default(b)', 'dictsort', 'e', 'escape'),
  *('filesizeformat', 'first', 'float', 'forceescape', 'format(b, b)'),
  *('groupby("x")', 'groupby(0)', 'indent(900000)', 'indent(b)', 'int'),
  *('int(base=16)', 'items', 'join', 'join(b)', 'join(attribute=a)', 'last'),
  *('length', 'list', 'lower', 'map("upper")', 'map("string")', 'max', 'min'),
  *('map(attribute="a.b.c.d")', 'reject("eq", b)', 'rejectattr("x")'),
  *('replace("a", b)', 'reverse', 'round(300000)', 'select("eq", b)'),
  *('selectattr("x", "eq", b)', 'slice(9999999)', 'slice(400000)', 'sort'),
  *('sort(reverse=true)', 'sort(attribute=a)', 'string', 'sum', 'title'),
  *('striptags', 'tojson', 'tojson(indent=9999)', 'tojson(indent=b)', 'trim'),
  *('tojson(separators=(b, b))', 'trim(b)', 'truncate(9999999)', 'unique'),
  *('upper', 'urlencode', 'urlize', 'wordcount', 'wordwrap(1)', 'xmlattr'),
  *('tojson(ensure_ascii=true)', 'select | list', 'batch(1) | list'),
  *('map("list") | list', 'reverse | list', 'unique | list', 'select("odd")'),
)
# How an operation is repeated; %s stands for the expression.
FORMS = {
  'loop': '{% for i in range(99999) %}{% for j in range(9) %}'
  '{% if (%s) is none %}{% endif %}{% endfor %}{% endfor %}',
  'kept': '{% set k = namespace(x=0) %}{% for i in range(99999) %}'
  '{% set k.x = [k.x, (%s)] %}{% endfor %}',
}
# Constructions of issue 16, each as it was found: hours, or gigabytes.
HANDED = (
  "{% set s = 'a'*9000000 %}{% set t = 'a'*4000000 ~ 'b' %}"
  '{% for i in range(99999) %}{% for j in range(9) %}{% if t in s %}{% endif %}'
  '{% endfor %}{% endfor %}x',
  "{% set a = ('f'*9000000)|int(base=16) %}"
  "{% set b = ('f'*4500000)|int(base=16) %}{{ (a // b) is none }}",
  '{% set ns = namespace(a=[1], b=[1]) %}{% for i in range(60) %}'
  '{% set ns.a=[ns.a,ns.a] %}{% set ns.b=[ns.b,ns.b] %}{% endfor %}'
  '{% if ns.a == ns.b %}x{% endif %}',
  '{% set ns = namespace(a=(1,)) %}{% for i in range(60) %}'
  '{% set ns.a=(ns.a,ns.a) %}{% endfor %}{% set d = {ns.a: 1} %}x',
  "{% set s = 'a'*9000000 %}{% for i in range(99999) %}{% for j in range(9) %}"
  '{% if s[1:] %}{% endif %}{% endfor %}{% endfor %}x',
  '{% set s = range(99999)|list %}{% for i in range(99999) %}'
  '{% set x = s|sort(reverse=(i%2==0)) %}{% endfor %}x',
  '{% set ns = namespace(w=3000000000) %}{{ "{0:{1.w}}".format(5, ns) }}',
)
# Constructions that are not an operation on a value.
OTHERS = (
  '{% for i in range(99999) %}{% for j in range(9) %}'
  + '{% set x = [' + '1,' * 5000 + '] %}{% endfor %}{% endfor %}',
  '{% set k = namespace(x=0) %}{% for i in range(99999) %}{% set x %}'
  + 'y' * 50000 + '{% endset %}{% set k.x = [k.x, x] %}{% endfor %}',
  '{% macro f() %}' + '{{ x.y.z }}' * 3000 + '{% endmacro %}'
  '{% for i in range(99999) %}{{ f() }}{% endfor %}',
  '{% for i in [1, 1] recursive %}{{ loop([1, 1]) }}{% endfor %}',
  '{% block x %}{% for i in [1, 2] %}{{ self.x() }}{% endfor %}{% endblock %}',
  ''.join(f'{{% set a{i}=1 %}}{{% if 1 %}}{{% endif %}}' for i in range(3000)),
  '{% if 1 %}' * 4000, '{% if x %}' + '{% elif x %}' * 6000 + '{% endif %}',
  '{{ ' + '(' * 40000, '{{ ' + '1+' * 30000 + '1 }}', 
  '{{ ' + '[' * 4000 + ']' * 4000,
  "{{ 'a'" + "|center(9000000)" * 99 + '}}', '{{ 0x' + 'f' * 90000 + ' // 3 }}',
  '{{ ' + '-' * 50000 + '1 }}', '{% for x in y %}' * 90 + '{% endfor %}' * 90,
)  # fmt: skip


def build(count: int) -> list[tuple[str, str]]:
  """Returns (name, template), spread over all constructions.

  Args:
    count: how many; those that are not an operation on a value come first.
  """
  macro = '{% macro f() %}{{ varargs | length }}{% endmacro %}'
  operations = [*EXPRESSIONS, *(f'a | {name}' for name in FILTERS)]
  cases = [
    (
      f'{form}: {value}: {operation}',
      macro + VALUES[value] + FORMS[form].replace('%s', operation),
    )
    for form, value, operation in itertools.product(FORMS, VALUES, operations)
  ]
  others = [(f'other {i}', source) for i, source in enumerate(OTHERS)]
  # A step that shares no factor with the number of cases visits all of them.
  step = 1009
  spread = [cases[i * step % len(cases)] for i in range(len(cases))]
  return [*others, *spread][:count]


def run(source: str) -> str:
  """Returns what became of a template: '' = rendered, else the refusal."""
  try:
    template = templates.ChatTemplate(source, date='2024-01-01')
    template.render([{'role': 'user', 'content': 'hi'}])
  except InputError as error:
    return str(error)
  return ''


def measure(source: str) -> tuple[str, float, int]:
  """Runs a template in a child: (what became of it, CPU seconds, bytes)."""
  before = resource.getrusage(resource.RUSAGE_CHILDREN)
  child = subprocess.run(
    [sys.executable, __file__, 'one'],
    input=source.encode('utf-8', 'surrogatepass'),
    capture_output=True,
    timeout=120,
  )
  after = resource.getrusage(resource.RUSAGE_CHILDREN)
  seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
  lines = child.stdout.decode().splitlines() or ['""', '0']
  if child.returncode:
    return f'died: {child.stderr.decode()[-200:]}', seconds, int(lines[-1])
  return json.loads(lines[0]), seconds, int(lines[-1])


def seconds_a_million_steps() -> float:
  """The worst search's CPU seconds at a price of all the steps of a rendering.

  The word has its only difference in the middle; calls of a few microseconds
  are priced as a step of their own.
  """
  worst = 0.0
  for size, length in itertools.product((100, 2000, 20000), (1, 50, 900)):
    text, word = 'a' * size, 'a' * (length // 2) + 'b' + 'a' * (length // 2)
    start = time.process_time()
    for _ in range(2000):
      assert word not in text
    seconds = (time.process_time() - start) / 2000
    units = budget.STEP + costs.of_search(size, length)
    worst = max(worst, seconds / units * budget.STEP * budget.MAX_STEPS)
  return worst


def main() -> int:
  """Runs all; returns the number of templates that took too much."""
  if sys.argv[1] == 'one':
    source = sys.stdin.buffer.read().decode('utf-8', 'surrogatepass')
    print(json.dumps(run(source)))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    return 0
  cases = build(int(sys.argv[1]))
  failed, longest, largest, start = 0, 0.0, 0, time.time()
  for name, source in cases:
    refusal, seconds, size = measure(source)
    longest, largest = max(longest, seconds), max(largest, size)
    if refusal.startswith('died') or seconds > MAX_SECONDS or size > MAX_BYTES:
      failed += 1
      print(f'{name}: {seconds:.1f} s, {size >> 20} MB, {refusal[:200]}')
  print(
    f'{len(cases)} templates, {failed} took too much; the longest '
    f'{longest:.1f} CPU s, the largest {largest >> 20} MB; '
    f'{time.time() - start:.0f} s'
  )
  worst = seconds_a_million_steps()
  print(f'a rendering that only searches: up to {worst:.1f} CPU s')
  return failed + (worst > MAX_SECONDS)


if __name__ == '__main__':
  sys.exit(bool(main()))
