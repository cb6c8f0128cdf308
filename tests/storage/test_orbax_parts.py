"""orbax_parts.py: what a failed save of Orbax prints beside its error."""

import asyncio
import errno
import gc
import os
import resource
import sys
import warnings

import pytest

from dpo_jax.storage import orbax_parts


@pytest.fixture
def said(monkeypatch):
  """Unraisable errors that are printed, with the filters of `silence`."""
  lines = []
  monkeypatch.setattr(sys, 'unraisablehook', lines.append)
  monkeypatch.setattr(sys, 'excepthook', sys.excepthook)
  with warnings.catch_warnings():
    orbax_parts.silence.__wrapped__()
    yield lines


def test_a_loop_without_descriptors_is_not_heard_again(said):
  limits = resource.getrlimit(resource.RLIMIT_NOFILE)
  used = os.dup(0)
  os.close(used)  # the next free one
  resource.setrlimit(resource.RLIMIT_NOFILE, (used, limits[1]))
  try:
    with pytest.raises(OSError) as failed:
      asyncio.new_event_loop()
  finally:
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)
  assert failed.value.errno == errno.EMFILE
  del failed
  gc.collect()
  assert said == []


def test_what_is_not_of_orbax_is_heard(said):
  class Odd:
    def __del__(self):
      raise AttributeError('_ssock')

  Odd()
  gc.collect()
  assert [str(entry.exc_value) for entry in said] == ['_ssock']


@pytest.mark.parametrize(
  'error, words',
  [
    (OSError(28, 'No space left on device', 'a/b'), 'No space left on device'),
    # As TensorStore writes it, with a specification in front of the number.
    (
      ValueError(
        'ABORTED: Error writing "c" [tensorstore_spec=\'{"a":true}\'] '
        "[os_error_code='28'] [source locations='x.cc:1']"
      ),
      'No space left on device',
    ),
    (KeyError('x'), "KeyError: 'x'"),
    (ValueError('a' * 900), 'ValueError: aaaa'),
  ],
)
def test_an_error_is_a_few_words(error, words):
  reason = orbax_parts.reason(error)
  assert reason.startswith(words) and len(reason) < 180
