"""Reductions: the settings at which a loss or an option is another loss.

Each is words for a page and a claim that tests/test_loss_pages.py checks on
numbers, value and gradient.
"""

from typing import Any, NamedTuple


class Reduction(NamedTuple):
  """One claim: `name` with `values` equals `other` with `others`.

  Hyper-parameters that both have and neither sets are those of `name`. An
  option is claimed to leave the loss `other` as it is.
  """

  name: str
  other: str
  values: dict[str, Any] = {}
  others: dict[str, Any] = {}
  words: str = ''  # what else must hold, or '' for the values alone
  # The scores and data of the check: keywords of harness.py's functions.
  scores: dict[str, Any] = {}
  data: dict[str, Any] = {}
  rtol: float = 1e-5


ONE = {'weight': (1, 0, 0, 0)}
EQUAL = {'tokens': (4.0, 4.0)}
# Log-ratios that are the log-probabilities of harness.py: log ref is 0.
UNIFORM = {'a_w': -7.0, 'a_l': -11.0}

REDUCTIONS = (
  Reduction('robust', 'sigmoid', {'label_smoothing': 0.0}),
  Reduction('margin', 'sigmoid', words='a margin of 0', data={'margin': 0.0}),
  Reduction(
    'odpo', 'sigmoid', words='scores 1 apart', data={'scores': (3.0, 2.0)}
  ),
  Reduction('odpo', 'sigmoid', {'alpha': 0.0}),
  Reduction('rdpo', 'sigmoid', {'alpha': 0.0}),
  Reduction('rdpo', 'sigmoid', words='equal lengths', scores=EQUAL),
  Reduction(
    'sigmoid_norm',
    'sigmoid',
    {'beta': 4.0},
    {'beta': 1.0},
    words='equal lengths n, with beta/n for beta',
    scores=EQUAL,
  ),
  Reduction(
    'ipo',
    'ipo',
    {'reduction': 'mean'},
    {'reduction': 'sum'},
    words='both choices agree on answers of one token',
    scores={'tokens': (1.0, 1.0)},
  ),
  Reduction('dpop', 'sigmoid', {'penalty': 0.0}),
  Reduction('dpo_shift', 'sigmoid', {'rejected_weight': 1.0}),
  Reduction(
    'dpop', 'sigmoid', words='a_w >= 0', scores={'a_w': (0.5, 2.0, 3.0, 9.0)}
  ),
  Reduction(
    'bco',
    'bco_pair',
    words='rewards that lie evenly about 0 (a shift of 0)',
    scores={'a_w': (0.5, 2.0, -1.0, 3.0), 'a_l': (-0.5, -2.0, 1.0, -3.0)},
    data={'weight': (1, 1, 1, 1)},
  ),
  Reduction('aot', 'sigmoid', words='one comparison', data=ONE),
  Reduction('aot_unpaired', 'sigmoid', words='one comparison', data=ONE),
  Reduction(
    'infonca',
    'sigmoid',
    {'alpha': 0.01},
    words='two answers and `alpha` near 0',
    data={'scores': (3.0, 1.0)},
  ),
  Reduction('softmax', 'sigmoid', words='two answers'),
  Reduction('plackett_luce', 'sigmoid', words='two answers'),
  Reduction(
    'slic_hf',
    'hinge',
    {'nll_weight': 0.0},
    {'beta': 1.0},
    words='`nll_weight=0`, `delta=1`, log ref 0 and beta 1',
    scores=UNIFORM,
  ),
  Reduction(
    'cpo',
    'sigmoid',
    {'alpha': 0.0},
    words='`alpha=0` and log ref 0',
    scores=UNIFORM,
  ),
  Reduction(
    'simpo',
    'sigmoid_norm',
    {'gamma': 0.0},
    words='`gamma=0` and log ref 0',
    scores=UNIFORM,
  ),
  Reduction('alphapo', 'simpo', {'alpha': 0.0}),
  Reduction('alpha_dpo', 'simpo', {'alpha': 0.0}),
  Reduction(
    'amapo',
    'simpo',
    {},
    {'gamma': 0.0},
    words='one comparison, `gamma` 0',
    data=ONE,
  ),
  Reduction('epsilon_dpo', 'sigmoid', {'epsilon': 0.0}),
  Reduction(
    'uni_dpo',
    'sigmoid_norm',
    {'focal_gamma': 0.0, 'nll_weight': 0.0, 'reward_scale': 100.0},
    words='`focal_gamma=0`, `nll_weight=0` and a large `reward_scale`',
  ),
  Reduction('tdpo1', 'sigmoid', words='K_w = K_l', scores={'kl': (0.7, 0.7)}),
  Reduction('tdpo2', 'sigmoid', {'alpha': 0.0}),
  Reduction('epsilon_dpo', 'sigmoid', {'epsilon': 0.0}),
  Reduction('alpha_dpo', 'simpo', {'alpha': 0.0}),
  Reduction(
    'amapo',
    'simpo',
    {},
    {'gamma': 0.0},
    words='one comparison, with `gamma=0`',
    data=ONE,
  ),
  Reduction(
    'uni_dpo',
    'sigmoid_norm',
    {'focal_gamma': 0.0, 'nll_weight': 0.0},
    words='`focal_gamma=0`, `nll_weight=0` and scores far apart',
    data={'scores': (100.0, 0.0)},
  ),
  Reduction('sft', 'nll', words='always: another name'),
  Reduction('ld_alpha', 'sigmoid', {'ld_alpha': 1.0}),
  Reduction('f_divergence', 'sigmoid', {'f_divergence': 'reverse_kl'}),
  Reduction(
    'f_divergence',
    'sigmoid',
    {'f_divergence': 'alpha_divergence', 'f_alpha': 1.0},
  ),
  Reduction(
    'dr_dpo', 'sigmoid', {'dr_beta': 1e6}, words='`dr_beta` to infinity'
  ),
  Reduction('beta_dpo', 'sigmoid', {'beta_dpo_a': 0.0, 'beta_dpo_rho': 0.0}),
  Reduction(
    'wpo',
    'sigmoid',
    words='an aligned log-probability of 0',
    scores={'policy': (-7.0, -11.0), 'log_sum_sq': (-7.0, -11.0)},
  ),
)


def of(name: str) -> list[Reduction]:
  """The claims about a loss or an option."""
  return [claim for claim in REDUCTIONS if claim.name == name]


def to(name: str) -> list[Reduction]:
  """The claims that something else becomes this loss."""
  return [c for c in REDUCTIONS if c.other == name and c.name != name]


def condition(claim: Reduction) -> str:
  """When a claim holds, in words."""
  if claim.words:
    return claim.words
  return ', '.join(
    f'`{k}={v}`' if isinstance(v, str) else f'`{k}={v:g}`'
    for k, v in claim.values.items()
  )
