"""JSON lines: unusual forms that are accepted.

test_files_refusals.py has the lines that are refused.
"""

import json

from dpo_jax.data.sources import source as sources

ROWS = [
  {'prompt': f'p{i}', 'chosen': 'é\u2028x', 'rejected': '', 'margin': i}
  for i in range(300)
]


def _jsonl(rows, end='\n'):
  return ''.join(json.dumps(r, ensure_ascii=False) + end for r in rows).encode()


def _write(path, data):
  path.write_bytes(data)
  return str(path)


def test_accepted_without_a_word(tmp_path):
  row = _jsonl(ROWS[:1]).strip()
  data = b'\xef\xbb\xbf' + row + b'\r\n\r\n  \n' + row + b'\r\n\n' + row
  source = sources.open_source(_write(tmp_path / 'a.jsonl', data))
  records = list(source.records())
  assert [r.where.rsplit(':', 1)[1] for r in records] == ['1', '4', '6']
  assert all(r.completions[0] == 'é\u2028x' for r in records)
