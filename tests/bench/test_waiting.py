"""waiting: an update that is long enough waits for no batch."""

import re

import numpy as np

from dpo_jax.bench import waiting
from dpo_jax.storage import token_store
from dpo_jax.types import Comparison, EncodedRecord


def _store(folder):
  def ids(n):
    return np.arange(n, dtype=np.int32)

  records = [
    EncodedRecord(
      ids(9), (ids(5), ids(i % 7 + 1)), (Comparison(0, 1),), uid=f'{i:016x}'
    )
    for i in range(40)
  ]
  return token_store.write(folder, records, {})


def test_the_line_counts_rows_and_milliseconds(tmp_path):
  line = waiting.run(
    _store(tmp_path / 's'), batch_size=8, row_length=64, step_ms=2.0
  )
  start, end = line.split(': a batch takes ')
  assert re.fullmatch(r'8 prompts in [2-4] rows of 64', start)
  assert re.search(r'an update of 2 ms waits for [0-9.]+ ms$', end)


def test_an_update_is_done_after_the_one_before():
  first = waiting._Update(None, 1000.0)
  second = waiting._Update(first, 1000.0)
  assert not first.is_ready() and second.end >= first.end + 1000
  assert waiting._Update(None, 0.0).is_ready()
