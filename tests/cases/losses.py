"""Cases of losses: values that their authors' code gives, in float64.

Four comparisons, or labelled completions, of given log-probabilities. The
right values are a few lines of numpy each; tests/losses has the same formulas
on random batches.
"""

import jax
import jax.numpy as jnp
import numpy as np
from cases.case import Case

from dpo_jax import losses, types

# log pi, log ref, |y| and the sum of log p - log sum p^2; winners, then losers.
POLICY = (-12.0, -30, -9, -41, -15, -22, -14, -38)
REFERENCE = (-14.0, -29, -12, -40, -14, -24, -13, -39)
TOKENS = np.array([6.0, 20, 3, 30, 8, 11, 7, 25])
ALIGNED = np.array([0.5, 0.1, -0.2, 0.6, 0.3, -0.4, 0.1, 0.5]) * TOKENS
# Log-ratios of nine desirable completions and three that are not.
LABELLED = (0.63, -0.66, 3.2, 0.52, -2.68, 1.81, 6.52, 4.74, -3.52)
LABELLED += (-6.33, -3.12, 0.21)


def pairs(policy=POLICY, reference=REFERENCE, tokens=TOKENS, aligned=ALIGNED):
  """(scores of policy and reference, batch) of comparisons."""
  num = len(policy) // 2
  policy, reference = jnp.asarray(policy), jnp.asarray(reference)
  tokens = jnp.asarray(tokens)
  sums = policy - jnp.asarray(aligned)
  comparisons = types.Comparisons(
    jnp.arange(num), jnp.arange(num) + num, jnp.ones(num), jnp.zeros(num)
  )
  batch = types.Batch(
    rows=None,
    comparisons=comparisons,
    labels=jnp.full(2 * num, -1),
    scores=jnp.zeros(2 * num),
    prompt_index=jnp.tile(jnp.arange(num), 2),
  )
  return (
    types.CompletionScores(policy, tokens, log_sum_sq_probs=sums),
    types.CompletionScores(reference, tokens),
    batch,
  )


def labelled(log_ratios, num_desirable):
  """The same of labelled completions; the comparisons are padding."""
  num = len(log_ratios)
  zeros, ones = jnp.zeros(num), jnp.ones(num)
  nothing = jnp.zeros(1)
  padding = nothing.astype(jnp.int32)
  batch = types.Batch(
    rows=None,
    comparisons=types.Comparisons(padding, padding, nothing, nothing),
    labels=(jnp.arange(num) < num_desirable).astype(jnp.int32),
    scores=zeros,
    prompt_index=jnp.arange(num),
  )
  policy = types.CompletionScores(jnp.asarray(log_ratios), ones)
  return policy, types.CompletionScores(zeros, ones), batch


def evaluated(inputs, terms, options=(), state=None, **values):
  """(loss, its gradient of the policy's log-probabilities), float64."""
  static = {k: v for k, v in values.items() if isinstance(v, (str, bool))}
  objective = losses.make_objective(tuple(terms), static, options)
  with jax.enable_x64(True):
    policy, reference, batch = inputs()
    hyper = {f'weight/{name}': weight for name, weight in terms.items()}
    for entry in (*objective.losses, *objective.transforms):
      hyper |= {k: values.get(k, v) for k, v in entry.hyper.items()}

    def loss_of(logps):
      scores = policy._replace(logps=logps)
      kept, new = objective.prepare(
        scores, reference, batch, hyper, objective.init_state()
      )
      given = new if state is None else state
      return objective(scores, reference, kept, hyper, state=given)[0]

    return jax.device_get(jax.value_and_grad(loss_of)(policy.logps))


def value(terms, options=(), inputs=pairs, **values):
  """A case's `ours`: the loss to six digits."""

  def ours(_):
    return f'{evaluated(inputs, terms, options, **values)[0]:.6f}'

  return ours


def gradient(inputs, terms, options=(), index=slice(0, 1), **values):
  """A case's `ours`: derivatives of some log-probabilities."""

  def ours(_):
    slopes = evaluated(inputs, terms, options, **values)[1][index]
    return ' '.join(f'{x:.6g}' for x in np.ravel(slopes))

  return ours


def divergence(a, **values):
  """The gradient of a winner at log-ratio a, its loser at 0."""

  def inputs():
    return pairs((a - 1, -1.0), (-1.0, -1.0), (1.0, 1.0), (0.0, 0.0))

  return gradient(inputs, {'sigmoid': 1.0}, ('f_divergence',), **values)


def mix(_):
  return ', '.join(f'{k} {v:g}' for k, v in losses.MIXES['mpo'][0].items())


SHIFT = {'bco': {'desirable': 0.3, 'undesirable': -0.2}}
ALL = {'beta_dpo_rho': 0.0}
SIGMOID, BETA_DPO, WPO = {'sigmoid': 1.0}, ('beta_dpo',), ('wpo',)
CASES = [
  Case(
    'beta-DPO (arXiv:2407.08639 and its code)',
    'one beta per batch, .127: the mean gap of the selected comparisons',
    '0.680405',
    value(SIGMOID, BETA_DPO, **ALL),
  ),
  Case(
    'beta-DPO (arXiv:2407.08639 and its code)',
    "the ablation, beta_dpo_per='comparison': .277, .001, .337, .001",
    '0.495327',
    value(SIGMOID, BETA_DPO, **ALL, beta_dpo_per='comparison'),
  ),
  Case(
    'NLL over the tokens of the batch',
    'cpo, alpha 1 (arXiv:2401.08417)',
    '2.322794',
    value({'cpo': 1.0}),
  ),
  Case(
    'NLL over the tokens of the batch',
    'cpo, alpha 0, and nll',
    '2.322794',
    value({'cpo': 1.0, 'nll': 1.0}, alpha=0.0),
  ),
  Case(
    'NLL over the tokens of the batch',
    'orpo (arXiv:2403.07691)',
    '1.638939',
    value({'orpo': 1.0}),
  ),
  Case(
    'WPO (arXiv:2406.11827 and its code)',
    'factors 1, .740818, .904837, 1',
    '0.612403',
    value(SIGMOID, WPO),
  ),
  Case(
    'WPO (arXiv:2406.11827 and its code)',
    'wpo_clamp=False, as TRL: 2.225541, .740818, .904837, 3.004166',
    '1.182150',
    value(SIGMOID, WPO, wpo_clamp=False),
  ),
  Case(
    'Dr. DPO (arXiv:2407.07880)',
    "beta' 1: -log mean exp(-L) of the four losses",
    '0.669014',
    value(SIGMOID, ('dr_dpo',)),
  ),
  Case(
    'BCO (arXiv:2404.04656)',
    'nine desirable, three not, shift .05: a mean of each label',
    '1.210666',
    value({'bco': 1.0}, inputs=lambda: labelled(LABELLED, 9), state=SHIFT),
  ),
  Case(
    'BCO (arXiv:2404.04656)',
    'every log-ratio 0: 2 ln 2',
    '1.386294',
    value({'bco': 1.0}, inputs=lambda: labelled((0.0,) * 4, 3)),
  ),
  Case(
    'BCO (arXiv:2404.04656)',
    'four desirable completions only: each one is pulled up',
    '-0.0125 -0.0125 -0.0125 -0.0125',
    gradient(lambda: labelled((0.0,) * 4, 4), {'bco': 1.0}, index=slice(4)),
  ),
  Case(
    'BCO (arXiv:2404.04656)',
    'four undesirable completions only: each one is pushed down',
    '0.0125 0.0125 0.0125 0.0125',
    gradient(lambda: labelled((0.0,) * 4, 0), {'bco': 1.0}, index=slice(4)),
  ),
  *(
    Case('f-divergences of far worse answers', case, right, ours)
    for case, right, ours in (
      (
        'forward_kl at -39: -.1 e^39',
        '-8.65934e+15',
        divergence(-39.0, f_divergence='forward_kl'),
      ),
      (
        'forward_kl at -41: a line of slope -.1 e^40, not 0',
        '-2.35385e+16',
        divergence(-41.0, f_divergence='forward_kl'),
      ),
      (
        'alpha_divergence .5 at -79: -.1 e^39.5',
        '-1.42768e+16',
        divergence(-79.0, f_divergence='alpha_divergence', f_alpha=0.5),
      ),
      (
        'alpha_divergence .5 at -81: a line, not 0',
        '-2.35385e+16',
        divergence(-81.0, f_divergence='alpha_divergence', f_alpha=0.5),
      ),
    )
  ),
  Case(
    'MPO (arXiv:2411.10442)',
    "the quality part has BCO's reward shift",
    'sigmoid 0.8, bco 0.2, nll 1',
    mix,
  ),
]
