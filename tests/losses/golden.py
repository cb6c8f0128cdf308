"""TRL's numbers for 113 settings, with the arrays that the tests read.

`load()` reads the compact copy beside this file; if the environment variable
DPO_JAX_GOLDEN names a folder, it reads the `trl_losses.json.gz` there instead.
`python tests/losses/golden.py FOLDER` makes the copy from such a folder.
"""

import gzip
import json
import os
import pathlib
import sys

import numpy as np

_COPY = pathlib.Path(__file__).with_name('trl_losses.npz')
_TOKENS = {  # our name: name in the JSON; [2B, T-1] per case
  'mask': 'completion_mask',
  'policy': 'policy_token_logps',
  'reference': 'reference_token_logps',
  'log_sum_sq': 'log_sum_sq_probs',
  'gradient': 'grad_token_logps',
}


def load():
  """[{setting, loss, metrics, arrays of _TOKENS}], float64; B first chosen."""
  folder = os.environ.get('DPO_JAX_GOLDEN')
  return read_folder(folder) if folder else read_copy()


def read_copy():
  """The 113 settings of the compact copy."""
  with np.load(_COPY) as file:
    arrays = {name: file[name].astype(np.float64) for name in _TOKENS}
    rest = json.loads(str(file['rest']))
  return [
    case | {name: values[i] for name, values in arrays.items()}
    for i, case in enumerate(rest)
  ]


def read_folder(folder):
  """The settings of a folder's trl_losses.json.gz."""
  path = pathlib.Path(folder) / 'trl_losses.json.gz'
  with gzip.open(path, 'rt') as file:
    cases = json.load(file)['cases']
  read = []
  for case in cases:
    mask = np.asarray(case['completion_mask'], np.float64)
    arrays = {
      name: mask * np.asarray(case[key] or 0.0, np.float64)
      for name, key in _TOKENS.items()
    }
    kept = {k: case[k] for k in ('setting', 'loss', 'metrics')}
    read.append(kept | arrays)
  return read


def _write(folder):
  cases = read_folder(folder)
  arrays = {name: np.stack([c.pop(name) for c in cases]) for name in _TOKENS}
  arrays['mask'] = arrays['mask'].astype(np.int8)
  np.savez_compressed(_COPY, rest=json.dumps(cases), **arrays)


if __name__ == '__main__':
  _write(sys.argv[1])
