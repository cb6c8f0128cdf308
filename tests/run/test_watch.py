"""watch: several processes end alike; here they are threads with one store."""

import threading
import time

import pytest

from dpo_jax.run import watch
from dpo_jax.run.preemption import Diverged, Lost, Preempted
from dpo_jax.types import InputError


class Stores:
  """A store in memory, which every watch of a test reaches."""

  def __init__(self):
    self.values, self._lock = {}, threading.Lock()

  def store(self):
    return watch.Store(self.put, self.put_over, self.get, self.all)

  def put(self, name, value):
    with self._lock:
      self.values.setdefault(name, value)

  def put_over(self, name, value):
    with self._lock:
      self.values[name] = value

  def get(self, name, seconds):
    del seconds
    return self.values.get(name)

  def all(self, folder):
    with self._lock:
      return {
        name.removeprefix(f'{folder}/'): value
        for name, value in self.values.items()
        if name.startswith(f'{folder}/')
      }


def watches(count=2, heartbeat=60.0):
  """Watches of one run, whose threads are not started."""
  stores = Stores()
  return stores, [
    watch.Watch(stores.store(), rank, count, heartbeat) for rank in range(count)
  ]


def hear(*all_of_them):
  """What `_talk` does once in each process, at the same time."""

  def once(one):
    one._take(one._store.all('news'))
    if one.stop and not one._last_poll and one.fault is None:
      one._agree()

  threads = [threading.Thread(target=once, args=[w]) for w in all_of_them]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join(10)
    assert not thread.is_alive()


@pytest.mark.parametrize('ahead', [0, 1])
def test_all_stop_at_one_poll_whoever_is_ahead(ahead):
  stores, both = watches()
  for rank, one in enumerate(both):
    for _ in range(5 + (rank == ahead)):
      one.poll()
  stores.put('news/stop', '15')
  hear(*both)
  stopped = []
  for one in both:
    with pytest.raises(Preempted) as stop:
      for _ in range(10):
        one.poll()
    stopped.append(one._polls)
    assert stop.value.exit_code == 143
  # One more than the process in front had made, and never one less.
  assert stopped == [7, 7]


def test_a_stop_that_is_heard_twice_ends_nobody_at_once():
  stores, (one, _) = watches()
  for now in (10.0, 10.002, 10.0 + watch.SAME_STOP - 0.01):
    one._hear(15, now)
  assert stores.values == {'news/stop': '15'} and one.fault is None
  one._hear(15, 10.0 + watch.SAME_STOP)
  assert one.fault.code == 143 and one.fault.at_once


def test_a_process_that_reads_by_itself_stops_at_once():
  stores, (one, other) = watches()
  stores.put('news/stop', '15')
  hear(one, other)
  with pytest.raises(Preempted):
    one.local(one.poll)
  assert one._polls == 0


def test_the_first_fault_counts_and_ends_all_with_its_code():
  _, both = watches()
  both[1].fail(watch.Fault(1, 2, 'x: wrong; fix: another'))
  both[0].fail(watch.Fault(0, 1, 'later'))
  for one in both:
    with pytest.raises(InputError, match='x: wrong; fix: another'):
      one.poll()


@pytest.mark.parametrize(
  ('code', 'kind'),
  [(1, Diverged), (2, InputError), (3, Lost), (143, Preempted)],
)
def test_a_fault_is_raised_as_what_it_was(code, kind):
  fault = watch.from_text(watch.to_text(watch.Fault(1, code, 'line')))
  assert isinstance(fault.error(), kind)


def test_a_silent_process_is_named(monkeypatch):
  stores, (first, other) = watches(heartbeat=5.0)
  stores.put('who/1', 'host, 17')
  clock = [100.0]
  monkeypatch.setattr(time, 'monotonic', lambda: clock[0])
  other._beat()
  first._beat()
  for _ in range(4):  # the first one lives
    clock[0] += 1
    first._beat()
  assert first.fault is None
  clock[0] += 2
  first._beat()
  assert first.fault.code == Lost.exit_code
  assert 'process 1 of 2 (host, 17) does not answer' in first.fault.line
  assert 'the same command' in first.fault.line


@pytest.mark.parametrize('excused', [False, True])
def test_a_process_that_stays_behind_is_stuck_unless_it_compiles(
  excused, monkeypatch
):
  _, (first, other) = watches(heartbeat=5.0)
  clock = [100.0]
  monkeypatch.setattr(time, 'monotonic', lambda: clock[0])
  monkeypatch.setattr(watch, '_compiles', lambda: excused)
  other.poll(7)
  first.poll(7)
  first.poll(8)
  for _ in range(8):
    clock[0] += 1
    other._beat()
    first._beat()
  if excused:
    assert first.fault is None
  else:
    assert 'process 1 of 2' in first.fault.line
    assert 'is stuck after step 7' in first.fault.line


def test_processes_that_wait_together_are_not_stuck(monkeypatch):
  _, (first, other) = watches(heartbeat=5.0)
  clock = [100.0]
  monkeypatch.setattr(time, 'monotonic', lambda: clock[0])
  for one in (first, other):
    one.poll(3)
  for _ in range(20):
    clock[0] += 1
    other._beat()
    first._beat()
  assert first.fault is None


def test_a_lost_process_of_a_run_that_stops_is_a_stop():
  stores, (first, _) = watches()
  stores.put('news/stop', '15')
  first._take(stores.all('news'))
  first._lose('1', 'does not answer', time.monotonic())
  assert first.fault.code == 143


@pytest.mark.parametrize(
  ('beats', 'late'),
  [
    (['9 4 3 0', '9 4 3 0', '9 4 3 0'], None),
    (['9 4 3 1', '9 4 3 1', '9 4 3 1'], None),  # all compile
    (['9 4 3 0', '9 4 3 1', '9 4 3 0'], (1, '1 of 3 (b, 1)', 3)),
    (['9 4 3 0', '9 4 3 0', '9 3 2 0'], (2, '2 of 3 (unknown)', 2)),
    (['9 3 2 1', '9 4 3 1', '9 4 3 1'], (0, '0 of 3 (unknown)', 2)),
    (['9 4 3 0', '9 4 3 1', '9 3 2 1'], (1, '1 of 3 (b, 1) and 1 more', 3)),
  ],
)
def test_those_behind_are_known_by_their_beats(beats, late):
  stores, (one, *_) = watches(3)
  stores.put('who/1', 'b, 1')
  for rank, beat in enumerate(beats):
    stores.put_over(f'beat/{rank}', beat)
  found = one.behind()
  assert (found and (*found[:2], found[2].step)) == late
