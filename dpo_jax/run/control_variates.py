"""estimates of KL per answer, draws -> the same with less noise, unbiased.

Comes in: per answer and token, the exact KL of the next token and draws of mean
0 (sampled_kl.py), numpy. Goes out: one estimate per answer. Knows no model.

A sum of draws, times weights that do not depend on the answer, has mean 0: what
is left when it is subtracted has the same mean, and less variance if the draws
tell what the following tokens cost (a control variate; with sums of martingale
differences, Henderson and Glynn 2002, Math. of Operations Research 27(2)). The
weights of an answer are a regression over the answers of other prompts (cross
fitting), so that they do not depend on it.
"""

import numpy as np

_FOLDS = 8
# Tokens after a draw that its regression reads: later ones add more noise than
# they tell.
_HORIZON = 12
# Ridge, as answers of strength: half weight at this many answers.
_RIDGE = 40.0


def adjusted(
  kl_NT: np.ndarray, draws_NTF: np.ndarray, clusters: np.ndarray
) -> np.ndarray:
  """Returns an estimate of the KL per answer, [N] in nats.

  Its mean has the expectation of the mean of `kl_NT.sum(1)`. A value may be
  negative.

  Args:
    kl_NT: exact KL at each token of an answer, 0 after its end.
    draws_NTF: numbers with mean 0 given the tokens before, 0 after its end.
    clusters: [N]; answers of one cluster (a prompt) do not set each other's
      weights. With fewer than two clusters nothing is subtracted.
  """
  total = kl_NT.sum(1, dtype=np.float64)
  _, owners = np.unique(clusters, return_inverse=True)
  # All answers of a cluster are in one fold.
  fold = owners % _FOLDS
  draws = draws_NTF.astype(np.float64)
  following = _following(kl_NT.astype(np.float64))
  sums = draws.sum(1)
  # A training set is all answers less those of its own fold.
  parts = [
    _moments(following[fold == k], draws[fold == k]) for k in range(_FOLDS)
  ]
  whole = [sum(part) for part in zip(*parts)]
  for k, part in enumerate(parts):
    rest = [x - y for x, y in zip(whole, part)]
    number = rest[-1]
    if number:
      total[fold == k] -= sums[fold == k] @ _regress(*rest)
  return total


def _following(kl_NT):
  """The KL of the tokens after each one, up to the horizon, [N, T]."""
  T = kl_NT.shape[1]
  ends = np.minimum(np.arange(T) + 1 + _HORIZON, T)
  cumulated = np.pad(kl_NT, ((0, 0), (1, 0))).cumsum(1)
  return cumulated[:, ends] - cumulated[:, 1:]


def _moments(following_NT, draws_NTF):
  """Sums that a regression needs: [F, F], [F], and by place [T], [T, F], []."""
  flat = draws_NTF.reshape(-1, draws_NTF.shape[-1])
  return (
    flat.T @ flat,
    flat.T @ following_NT.reshape(-1),
    following_NT.sum(0),
    draws_NTF.sum(0),
    len(following_NT),
  )


def _regress(square_FF, product_F, following_T, draws_TF, number):
  """Ridge regression with the draws in units of their deviation, [F]."""
  # What follows is taken less its mean at each place of an answer.
  product_F = product_F - following_T @ draws_TF / number
  scale = np.sqrt(np.diag(square_FF))
  # A draw that never varies explains nothing.
  scale = np.where(scale > 0, scale, 1.0)
  square = square_FF / np.outer(scale, scale)
  ridge = _RIDGE / number * np.eye(len(square))
  return np.linalg.solve(square + ridge, product_F / scale) / scale
