"""How far does each loss end from an optimum that is known?

Question: tables of logits over a few completions with a known reward, trained
by the losses and the step of the language models. Distance of every loss to
pi* = ref exp(r / beta) / Z and to its own optimum, by beta, number of
comparisons, flipped labels and the distribution of pairs; then the same with a
judge who never errs, and IPO's bandit of three actions (arXiv:2310.12036,
section 5.4).
Command: python -m experiments.exact_bandit --out=runs/exact
Hardware: one CPU core, about three minutes.
Expected: DPO within 1e-3 total variation of pi* (3e-6 or less), IPO of its own
optimum, which is 0.234 +- 0.051 from pi* at beta 1. DPO is 0.203, 0.061 and
0.017 from pi* after 100, 1,000 and 10,000 comparisons, and 0.139 with 20 %
flipped labels, where robust DPO stays at pi*. In the bandit at beta 10 DPO
gives the best action 0.660, 0.670, 0.754 and 0.990 after 100 to 100,000
updates, IPO 0.345.
"""

import argparse
import sys
from collections.abc import Sequence

from dpo_jax.exact import __main__ as exact_main

FEW = '--losses=sigmoid,ipo,sigmoid:label_smoothing=0.1,hinge,sppo_hard'
ONE = ('--sizes=inf', '--noises=0', '--samplings=uniform')
# {folder: flags of python -m dpo_jax.exact}
STUDIES = {
  'bradley_terry': (
    '--losses=all,robust:label_smoothing=noise,sigmoid:label_smoothing=noise',
    '--measures=tv,regret',
  ),
  'deterministic': (
    '--case=deterministic',
    FEW,
    '--betas=10,0.1,1',
    '--steps=10000,100,1000',
    '--measures=best,drift',
    *ONE,
  ),
  'three_actions': (
    '--case=three_actions',
    FEW,
    '--betas=10,0.1,1',
    '--steps=100000,100,1000,10000',
    '--seeds=1',
    '--measures=best,drift',
    *ONE,
  ),
}


def main(arguments: Sequence[str] | None = None) -> int:
  """Runs the studies; flags besides --out change all of them."""
  parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
  parser.add_argument('--out', default='runs/exact', help='folder')
  options, changes = parser.parse_known_args(arguments)
  for name, flags in STUDIES.items():
    words = [*flags, f'--out={options.out}/{name}', *changes]
    code = exact_main.main(words)
    if code:
      return code
  return 0


if __name__ == '__main__':
  sys.exit(main())
