"""Freed memory stays with the process on Linux, and nothing else changes."""

import resource
import subprocess
import sys

import pytest

from dpo_jax.run import host_memory

# Sums blocks of 64 MB, ten times; prints the page faults of the last nine.
PROGRAM = """
import ctypes, resource, sys
from dpo_jax.run import host_memory
if sys.argv[1] == 'keep':
  assert host_memory.keep_freed()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
def use():
  block = libc.malloc(64 * 2**20)
  ctypes.memset(block, 1, 64 * 2**20)
  libc.free(block)
use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(9):
  use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != 'linux', reason='glibc is of Linux')
def test_freed_memory_is_not_taken_again_page_by_page():
  faults = {
    how: int(
      subprocess.run(
        [sys.executable, '-c', PROGRAM, how],
        capture_output=True,
        check=True,
        text=True,
      ).stdout
    )
    for how in ('keep', 'give')
  }
  pages = 9 * 64 * 2**20 // resource.getpagesize()
  assert faults['give'] > pages / 2
  assert faults['keep'] < pages / 20


def test_a_host_of_accelerators_gives_memory_back(monkeypatch, tmp_path):
  (tmp_path / 'nvidia0').touch()
  pattern = str(tmp_path / 'nvidia[0-9]*')
  monkeypatch.setattr(host_memory, '_ACCELERATORS', (pattern,))
  assert not host_memory.keep_freed({})
  # It computes on its CPU if it is told to.
  assert not host_memory.keep_freed({'JAX_PLATFORMS': 'cuda'})
  assert host_memory._computes({'JAX_PLATFORMS': 'cpu'})
  monkeypatch.setattr(host_memory, '_ACCELERATORS', (f'{tmp_path}/none*',))
  assert host_memory._computes({})


def test_jax_takes_most_of_a_gpu_unless_the_user_chose():
  name = 'XLA_CLIENT_MEM_FRACTION'
  assert host_memory.gpu_settings({}) == {name: '.92'}
  assert host_memory.gpu_settings({name: '.5'}) == {}
  assert host_memory.gpu_settings({'XLA_PYTHON_CLIENT_PREALLOCATE': '0'}) == {}


class XlaRuntimeError(RuntimeError):
  """By its name that of jaxlib, which this test need not import."""


@pytest.mark.parametrize(
  'error, words',
  [
    (MemoryError(), 'of the host'),
    (MemoryError('8 TB\nmore'), '(8 TB)'),
    (XlaRuntimeError('RESOURCE_EXHAUSTED: 8 TB asked'), '8 TB asked'),
    (XlaRuntimeError('Out of memory allocating 9 bytes'), '9 bytes'),
    (XlaRuntimeError('INTERNAL: a bug'), None),
    (RuntimeError('RESOURCE_EXHAUSTED of something else'), None),
    (ValueError('Out of memory'), None),
  ],
)
def test_want_of_memory_is_one_line_and_a_bug_is_none(error, words):
  line = host_memory.line_of(error)
  assert bool(line) == (words is not None)
  if words:
    assert line.startswith('out of memory (') and words in line
    assert '\n' not in line and 'fix: a smaller train.batch_size' in line
