"""Cases of ranked answers and weights, and of settings that are not given."""

import pathlib

import jax.numpy as jnp
import numpy as np
from cases import labels
from cases.case import Case

from dpo_jax import config as config_lib
from dpo_jax import losses, optim, types

ROOT = pathlib.Path(__file__).resolve().parents[2]
PRESETS = ROOT / 'experiments' / 'paper_presets.py'


def infonca(_, weights=(1.0, 0.0, 2.0)):
  """The loss of three pairs of answers with scores and weights."""
  scores = [[2.0, 1], [4, 3], [1, 0]]
  rewards = np.array([[0.3, -0.1], [-2, 2], [0.2, 0.1]])
  first = 2 * jnp.arange(3)
  batch = types.Batch(
    rows=None,
    comparisons=types.Comparisons(
      first, first + 1, jnp.array(weights), jnp.zeros(3)
    ),
    labels=jnp.full(6, -1),
    scores=jnp.array(scores).reshape(-1),
    prompt_index=jnp.repeat(jnp.arange(3), 2),
  )
  # Log-ratios a = r / beta.
  policy = types.CompletionScores(
    jnp.array(rewards).reshape(-1) / 0.1, jnp.ones(6)
  )
  frozen = types.CompletionScores(jnp.zeros(6), jnp.ones(6))
  objective = losses.make_objective(('infonca',))
  hyper = losses.default_hyper({'infonca': 1.0})
  return f'{objective(policy, frozen, batch, hyper)[0]:.6f}'


def ranked(i, count):
  comparisons = tuple(
    types.Comparison(k, m, 1.0, float(m - k))
    for k in range(count)
    for m in range(k + 1, count)
  )
  scores = tuple(float(-k) for k in range(count))
  answers = labels.make_record(
    i, *[3] * count, scores=scores, uid=f'{i}/{count}'
  )
  return answers._replace(comparisons=comparisons)


def shares(weigh_prompts, records):
  """A case's `ours`: the share of each prompt in the mean over comparisons."""

  def ours(_):
    plan = labels.plan_of(
      records,
      batch_size=len(records),
      weigh_prompts=weigh_prompts,
      mismatched_length=0,
      shuffle=False,
    )
    batch = plan.batch(0, records)
    winner, _, weight, _ = batch.comparisons
    totals = {}
    for c, w in zip(winner, weight):
      prompt = int(records[batch.prompt_index[c]].prompt[0])
      totals[prompt] = totals.get(prompt, 0.0) + float(w) / weight.sum()
    return ', '.join(f'{share:.3f}' for share in totals.values())

  return ours


def imitated(nll_of):
  """A case's `ours`: the weight with which nll imitates each of 4 answers."""

  def ours(_):
    records = [ranked(0, 4)]
    plan = labels.plan_of(
      records, batch_size=1, mismatched_length=0, shuffle=False
    )
    batch = plan.batch(0, records)
    objective = losses.make_objective(('nll',), {'nll_of': nll_of})
    hyper = losses.default_hyper({'nll': 1.0}, nll_of=nll_of)
    tokens = jnp.full(4, 3.0)

    def loss(logps):
      scores = types.CompletionScores(logps, tokens)
      return objective(scores, None, batch, hyper)[0]

    at_minus_3 = jnp.full(4, -3.0)
    steps = [loss(at_minus_3.at[k].add(-18.0)) - 1 for k in range(4)]
    return ' : '.join(f'{step:.0f}' for step in steps)

  return ours


# Defaults of optimisers, published settings.


def updates(name):
  """A case's `ours`: three updates by a constant gradient of 1."""

  def ours(_):
    optimizer, sizes = optim.make_optimizer(name), []
    state = optimizer.init(jnp.zeros(1))
    for _ in range(3):
      update, state = optimizer.update(jnp.ones(1), state)
      sizes.append(f'{float(update[0]):.4g}')
    return ' '.join(sizes)

  return ours


def lion(_):
  optimizer = optim.make_optimizer('lion')
  _, (state,) = optimizer.update(jnp.ones(1), optimizer.init(jnp.zeros(1)))
  return f'{1 - float(state.mu[0]):.2f}'


def lengths(name):
  """A case's `ours`: tokens of a text, and of its prompt."""

  def ours(_):
    loaded = config_lib.load(f'{PRESETS}:{name}').data
    return f'{loaded.max_length}, {loaded.prompt_max_length}'

  return ours


RANKED = 'ranked answers and weights'
DEFAULTS = 'defaults of optimisers'
CASES = [
  Case(
    RANKED,
    'infonca (arXiv:2402.05369), weights 1, 0, 2',
    '0.654391',
    infonca,
  ),
  Case(
    RANKED,
    'infonca, weights 1, 1, 1',
    '1.411422',
    lambda tmp: infonca(tmp, (1.0, 1.0, 1.0)),
  ),
  Case(
    RANKED,
    'shares of prompts with 2 and 4 answers, data.weigh_prompts',
    '0.500, 0.500',
    shares(True, [ranked(0, 2), ranked(1, 4)]),
  ),
  Case(
    RANKED,
    'shares of prompts with 2 and 4 answers, by comparisons (documented)',
    '0.143, 0.857',
    shares(False, [ranked(0, 2), ranked(1, 4)]),
  ),
  Case(
    RANKED,
    'shares of prompts with 1 and 3 rows of pairs, data.weigh_prompts',
    '0.500, 0.500',
    shares(
      True,
      [ranked(0, 2), *(ranked(1, 2)._replace(uid=f'{n}') for n in range(3))],
    ),
  ),
  Case(
    RANKED,
    'nll beside four answers, nll_of=best, as RPO and MPO: the best alone',
    '6 : 0 : 0 : 0',
    imitated('best'),
  ),
  Case(
    RANKED,
    'nll beside four answers, nll_of=chosen: the winner of each comparison',
    '3 : 2 : 1 : 0',
    imitated('chosen'),
  ),
  Case(
    DEFAULTS,
    'rmsprop, decay .99 as torch: 1/sqrt(1 - .99^t)',
    '10 7.089 5.802',
    updates('rmsprop'),
  ),
  Case(DEFAULTS, 'lion, b2 (arXiv:2302.06675)', '0.99', lion),
  Case(
    DEFAULTS,
    'adamw, b1 .9 and b2 .999: the first updates are 1',
    '1 1 1',
    updates('adamw'),
  ),
  Case(
    'published settings',
    'simpo_mistral_base: max_length, max_prompt_length',
    '1024, 512',
    lengths('simpo_mistral_base'),
  ),
  Case(
    'published settings',
    'simpo_llama3_instruct: max_length, max_prompt_length',
    '2048, 1800',
    lengths('simpo_llama3_instruct'),
  ),
]
