"""rliable's bootstrap of matrices in an npz file, as JSON on stdout.

Runs in an environment of its own, which has PACKAGES and no dpo_jax:
`python rliable_intervals.py MATRICES.npz`.

Source: Agarwal et al., arXiv:2108.13264.
"""

import json
import sys

# arch 7.2 does not import with pandas 3.
PACKAGES = ('rliable==1.2.0', 'arch==7.2.0', 'pandas<3')
DRAWS = 10_000


def main(path: str) -> None:
  """Prints {name: {'mean': [low, high], 'iqm': [low, high]}}."""
  import numpy as np
  from rliable import library, metrics

  def aggregate(scores):
    return np.array(
      [metrics.aggregate_mean(scores), metrics.aggregate_iqm(scores)]
    )

  with np.load(path) as matrices:
    scores = dict(matrices)
  _, ends = library.get_interval_estimates(
    scores, aggregate, reps=DRAWS, random_state=np.random.RandomState(0)
  )
  result = {
    name: {'mean': list(each[:, 0]), 'iqm': list(each[:, 1])}
    for name, each in ends.items()
  }
  print(json.dumps(result))


if __name__ == '__main__':
  main(sys.argv[1])
