"""Random comparisons, and the objective's value and gradient of all of them.

Every batch has P comparisons of their own two completions: lengths from 1,
ties of log-ratios and of scores, weights of which some are 0 (the first batch
has no other). All numbers are float64. A formula takes the fields of `make`,
numpy arrays [N, P], and returns losses [N].
"""

import jax
import jax.numpy as jnp
import numpy as np

from dpo_jax import losses, types

LOG_PROBS = ('policy_chosen', 'policy_rejected')


def make(num=200, pairs=5, seed=0):
  """{field of PairScores: float64 [num, pairs]} of random comparisons."""
  rng = np.random.default_rng(seed)
  shape = num, pairs
  tokens = [rng.integers(1, 40, shape).astype(float) for _ in range(2)]
  tokens[0][:, 0] = 1
  fields = {'chosen_tokens': tokens[0], 'rejected_tokens': tokens[1]}
  for name, count in zip(('chosen', 'rejected'), tokens):
    reference = -count * rng.uniform(0.05, 3, shape)
    policy = np.minimum(reference + rng.normal(0, 2, shape), -0.01)
    fields |= {f'policy_{name}': policy, f'reference_{name}': reference}
    fields[f'score_{name}'] = rng.integers(0, 4, shape).astype(float)
    fields[f'{name}_aligned'] = count * rng.normal(0, 0.5, shape)
    for tilt in ('away', 'toward'):
      fields[f'{name}_{tilt}'] = rng.choice([-0.5, 0.0, 0.25, 1.0], shape)
  # Ties: policy and reference agree, or both log-ratios do.
  for name in ('chosen', 'rejected'):
    fields[f'policy_{name}'][:, 1] = fields[f'reference_{name}'][:, 1]
  gap = fields['policy_chosen'] - fields['reference_chosen']
  fields['reference_rejected'][:, 2] = (fields['policy_rejected'] - gap)[:, 2]
  weight = rng.uniform(0.2, 3, shape) * (rng.random(shape) < 0.8)
  weight[0] = 0
  return fields | {'weight': weight}


def ours(fields, terms, options=(), state=None, **values):
  """(losses [N], {LOG_PROBS: gradients [N, P]}, state) of the real objective.

  Args:
    fields: of `make`.
    terms: {loss: weight}.
    options: names of options.
    state: the loss state before the batch; default: that of a first step.
    **values: hyper-parameters and static choices.
  """
  static = {k: v for k, v in values.items() if isinstance(v, (str, bool))}
  objective = losses.make_objective(tuple(terms), static, tuple(options))
  with jax.enable_x64(True):
    losses.default_hyper(terms, tuple(options), **values)  # checks them
    hyper = {f'weight/{name}': weight for name, weight in terms.items()}
    for entry in (*objective.losses, *objective.transforms):
      hyper |= {k: values.get(k, v) for k, v in entry.hyper.items()}
    hyper = {k: jnp.float64(v) for k, v in hyper.items()}
    state = jax.tree.map(jnp.float64, state or objective.init_state())

    def loss_of(log_probs, one):
      scores, batch = _scores(one | log_probs, objective.needs)
      kept, new = objective.prepare(*scores, batch, hyper, state)
      return objective(*scores, kept, hyper, state=new)[0], new

    def one(fields):
      log_probs = {name: fields[name] for name in LOG_PROBS}
      return jax.value_and_grad(loss_of, has_aux=True)(log_probs, fields)

    arrays = {name: jnp.asarray(x, jnp.float64) for name, x in fields.items()}
    (value, new), gradient = jax.device_get(jax.jit(jax.vmap(one))(arrays))
  return value, gradient, new


def check(fields, formula, terms, options=(), *, rtol=1e-9, **values):
  """Compares value and gradient with a formula's, by central differences."""
  value, gradient, _ = ours(fields, terms, options, **values)
  np.testing.assert_allclose(value, formula(fields), rtol=rtol, atol=1e-12)
  for name in LOG_PROBS:
    slope = differences(formula, fields, name)
    # Central differences of step h: an error of h^2 and one of 1e-16 / h.
    scale = np.abs(slope).max()
    np.testing.assert_allclose(
      gradient[name], slope, rtol=1e-5, atol=1e-7 * max(scale, 1)
    )


def differences(formula, fields, name, step=1e-5):
  """d formula / d fields[name], [N, P]."""
  slopes = []
  for i in range(fields[name].shape[1]):
    up, down = ({**fields, name: fields[name].copy()} for _ in range(2))
    up[name][:, i] += step
    down[name][:, i] -= step
    slopes.append((formula(up) - formula(down)) / (2 * step))
  return np.stack(slopes, 1)


def mean(values, weight):
  """Weighted means [N] of values [N, P]; 0 over nothing."""
  total = weight.sum(1)
  return (weight * values).sum(1) / np.where(total > 0, total, 1)


def gap(fields):
  """The log-ratio gap h [N, P]."""
  chosen = fields['policy_chosen'] - fields['reference_chosen']
  return chosen - fields['policy_rejected'] + fields['reference_rejected']


def softplus(x):
  """-log s(-x)."""
  return np.logaddexp(0, x)


def _scores(fields, needs):
  """((policy, reference) CompletionScores [2 P], Batch); winners first."""
  num = fields['weight'].shape[0]
  both = {
    name: jnp.concatenate(
      [fields[name.format(s)] for s in ('chosen', 'rejected')]
    )
    for name in (
      'policy_{}',
      'reference_{}',
      '{}_tokens',
      'score_{}',
      '{}_aligned',
      *(('{}_away', '{}_toward') if 'tilted' in needs else ()),
    )
  }
  policy = types.CompletionScores(both['policy_{}'], both['{}_tokens'])
  if 'sum_sq_probs' in needs:
    policy = policy._replace(log_sum_sq_probs=policy.logps - both['{}_aligned'])
  if 'tilted' in needs:
    policy = policy._replace(away=both['{}_away'], toward=both['{}_toward'])
  reference = types.CompletionScores(both['reference_{}'], both['{}_tokens'])
  batch = types.Batch(
    rows=None,
    comparisons=types.Comparisons(
      jnp.arange(num),
      jnp.arange(num) + num,
      fields['weight'],
      jnp.zeros_like(fields['weight']),
    ),
    labels=jnp.full(2 * num, -1),
    scores=both['score_{}'],
    prompt_index=jnp.tile(jnp.arange(num), 2),
  )
  return (policy, reference), batch
