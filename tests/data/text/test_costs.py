"""What costs much is refused for the worst operands, and cheap things pass."""

import os
import signal
import threading
import time

import pytest

from dpo_jax.data.text import budget, costs, sandbox
from tests.data.text import hostile_templates


def render(source, **variables):
  return sandbox.compile_template(source, '2024-01-01').render(variables)


@pytest.mark.parametrize('source', hostile_templates.HANDED)
def test_constructions_of_issue_16_are_refused(source):
  assert hostile_templates.run(source)


def test_some_of_the_hostile_templates_are_refused(monkeypatch):
  # The program hostile_templates.py measures the time of all of them.
  steps = budget.MAX_STEPS // 10
  monkeypatch.setattr(budget.Budget.__init__, '__defaults__', (steps,))
  for name, source in hostile_templates.build(1200)[20::75]:
    assert hostile_templates.run(source), name


# Each is the worst case of one operation: hours, or gigabytes, in plain jinja2.
SLOW = [
  "{% set s = 'a' * 9000000 %}{{ s.strip(s[1:] ~ 'b') }}",
  "{% set s = 'a' * 9000000 %}{{ s.rfind('b' ~ s[4000000:]) }}",
  "{% set s = 'a' * 9000000 %}{{ s.rsplit('b' ~ s[4000000:]) }}",
  '{{ (5).to_bytes(10**9, "big") }}',
  "{{ 'a'.encode() * 10**9 }}",
  "{{ '%999999999d' is odd }}",
  "{{ '{:{w[0]}}'.format(5, w=[3000000000]) }}",
  "{{ [1] | slice(9999999) | list | length }}",
  "{{ 'a\\r' * 500000 | indent(9999) }}",
  "{{ [1, 2] | tojson(indent='x' * 9000000) }}",
  "{{ {} | tojson(separators=('x' * 9000000, ':')) }}",
  "{{ [1] | sort(attribute='a.' * 300) }}",
  "{{ strftime_now('%999999999d') }}",
  '{{ x | unique | list }}',
]  # fmt: skip


@pytest.mark.parametrize('source', SLOW)
def test_the_worst_case_of_an_operation_is_refused(source):
  with pytest.raises((budget.LimitError, OverflowError, TypeError)):
    # Integers that differ by 2**61 - 1 have one hash.
    render(source, x=[i * (2**61 - 1) for i in range(2, 60000)])


def test_a_search_costs_its_comparisons_unless_both_texts_are_long():
  # CPython's own bounds for its two-way search: 100 and 2,500 characters.
  for size, length in ((100, 50), (2400, 1199), (9_000_000, 99)):
    # 16 characters compared take the time of one copied.
    assert costs.of_search(size, length) >= size * length // 16
  long = costs.of_search(9_000_000, 4_000_000)
  assert 9_000_000 < long < costs.of_search(9_000_000, 4_000_000, True) / 1000


def test_sizes_count_what_is_shared_as_often_as_it_is_walked_through():
  shared = ['x' * 1000]
  for _ in range(3):
    shared = [shared, shared]
  weigh = budget.Budget().weigh
  assert 8000 < weigh(shared) < 9000
  assert weigh({'a': {'b': 'c' * 500}}) > 500
  assert weigh(10**4000) > 4000
  for _ in range(60):
    shared = [shared, shared]
  with pytest.raises(budget.LimitError, match='10000000 characters'):
    weigh(shared)
  deep = ()
  for _ in range(budget.MAX_DEPTH + 2):
    deep = (deep,)
  with pytest.raises(budget.LimitError, match='200 deep'):
    weigh(deep)


def test_a_namespace_in_its_own_attribute_is_written_without_it():
  source = '{% set ns = namespace() %}{% set ns.x = [ns] %}{{ ns.x }}{{ ns }}'
  assert render(source) == '[<Namespace>]<Namespace>'


def test_a_signal_is_heard_while_a_hostile_template_runs():
  heard = []
  old = signal.signal(signal.SIGTERM, lambda *_: heard.append(time.time()))
  timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM))
  try:
    timer.start()
    source = hostile_templates.HANDED[0]
    while not heard:
      hostile_templates.run(source)
      ended = time.time()
  finally:
    timer.join()
    signal.signal(signal.SIGTERM, old)
  assert heard[0] <= ended
