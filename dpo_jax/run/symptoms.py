"""metrics -> symptoms: what people ask about a run, each as one sentence.

Comes in: what a run measured. Goes out: one text per symptom, or '': what was
seen with its numbers, whether that is usual, and which knob to try. Reads no
files; imports no jax, because results show the texts too. A symptom is a
function of a `Case` in SYMPTOMS.
"""

import math
from collections.abc import Callable

import numpy as np

from dpo_jax.run import pair_symptoms
from dpo_jax.run.symptom_case import Case, mean_at_end, mean_before, short

# Held-out loss above its lowest value, as a share of what training gained. The
# pairs are the same at every evaluation, so that little of this is chance.
LOST_GAIN = 0.1
# A fall of the loss by less than this share is no training: at beta .1, 1 % of
# log 2 is a margin of .014 between answers, .14 nats.
LEAST_FALL = 0.01
# Half the band around 1/2 in which an accuracy is that of chance: two standard
# errors of 400 comparisons.
CHANCE_BAND = 0.05
# Drift of the data's answers in nats per token. At .5 each token is 1.6 times
# less likely than under the reference: perplexity grew by 65 %. Rafailov et al.
# (arXiv:2406.02900) find answers to get worse at high KL for DPO, IPO and SLiC.
FAR = 0.5
# Share of chosen answers that must be less likely to speak of displacement.
MOST = 0.5
# The training loss as a share of its start: gradients of logistic losses have
# about this share of their first size too.
SATURATED = 0.01
# Batches differ by a factor of two or three; ten is another thing.
SPIKE = 10.0
LEAST_STEPS = 10  # for a median


def not_finite(case: Case) -> str:
  """A loss or gradient became NaN or infinite."""
  for step, metrics in case.history.get('train', {}).items():
    names = [k for k, v in metrics.items() if not math.isfinite(v)]
    if names:
      return (
        f'{names[0]} was not finite at step {step}. The updates were too '
        f'large: lower {case.knob("optim.learning_rate")}, or set '
        f'{case.knob("optim.clip_norm")} to 1.'
      )
  return ''


def worse(case: Case) -> str:
  """Held-out loss ended above its start."""
  first, last = case.first.get('loss', math.nan), case.last.get('loss', 0)
  if not last - first > LEAST_FALL * abs(first):
    return ''
  text = f'held-out loss ended above its start: {short(first)} -> {short(last)}'
  if 'rewards/accuracies' in case.last:
    text += f', accuracy {case.last["rewards/accuracies"]:.0%}'
  trained = mean_at_end(case.steps('train', 'loss'))
  if trained < first:
    text += f'. Training loss fell to {short(trained)}: overfit, '
    text += 'usual after many passes'
  else:
    text += '. Not usual: the updates were too large'
  text += (
    f'. Lower {case.knob("optim.learning_rate")} or '
    f'{case.knob("train.num_steps")}'
  )
  step = _best_step(case)
  if step:
    best = case.steps('eval', 'loss')[step]
    text += f'; the lowest loss was {short(best)} at step {step}, which '
    text += _keep_best(case)
  return f'{text}.'


def overfit(case: Case) -> str:
  """Held-out loss rose again, while training loss went on to fall or not."""
  losses, trained = case.steps('eval', 'loss'), case.steps('train', 'loss')
  best = _best_step(case)
  if worse(case) or len(losses) < 3 or best == max(losses):
    return ''
  end, lowest = max(losses), losses[best]
  gained = losses[min(losses)] - lowest
  if not losses[end] - lowest > LOST_GAIN * gained:
    return ''
  text = (
    f'held-out loss rose from {short(lowest)} at step {best} to '
    f'{short(losses[end])} at step {end}'
  )
  before, after = mean_before(trained, best), mean_at_end(trained)
  if after < before:
    text += (
      f' while training loss fell from {short(before)} to {short(after)}: '
      'overfit. Usual after several passes over few pairs'
    )
  else:
    text += ', and training loss did not fall. Not usual: updates too large'
  return (
    f'{text}. Step {best} is what {_keep_best(case)}; or lower '
    f'{case.knob("train.num_steps")} or {case.knob("optim.learning_rate")}.'
  )


def hardly_moved(case: Case) -> str:
  """The loss is where it was."""
  first, last = (each.get('loss', math.nan) for each in (case.first, case.last))
  trained = case.steps('train', 'loss')
  if not abs(last - first) < LEAST_FALL * abs(first) or not trained:
    return ''
  return (
    f'the policy hardly moved: held-out loss {first:.4f} -> {last:.4f} in '
    f'{max(trained)} updates. Usual with a low learning rate or few updates: '
    f'raise {case.knob("optim.learning_rate")} or '
    f'{case.knob("train.num_steps")}.'
  )


def chance(case: Case) -> str:
  """Held-out accuracy is 50 %, or below."""
  accuracy = case.last.get('rewards/accuracies', math.nan)
  trained = mean_at_end(case.steps('train', 'rewards/accuracies'))
  # A policy that equals the reference wins nothing.
  if hardly_moved(case) or pair_symptoms.ties(case) or _is_start(case):
    return ''
  band = CHANCE_BAND
  if len(case.arrays.get('weight', ())):
    # Two standard errors, where they tell something: of few pairs they do not.
    band = min(1 / math.sqrt(len(case.arrays['weight'])), 2 * CHANCE_BAND)
  if accuracy < 0.5 - band:
    return (
      f'held-out accuracy is {accuracy:.0%}, below chance. Not usual: the '
      'held-out pairs look swapped, or follow another rule than the training '
      'pairs. Look with --mode=show; see data.columns and data.eval.'
    )
  if not accuracy <= 0.5 + band:
    return ''
  if trained > max(0.5, accuracy) + 2 * CHANCE_BAND:
    return (
      f'held-out accuracy stays at 50 % ({accuracy:.0%}) with '
      f'{trained:.0%} in training. Not usual: the policy knows its pairs by '
      'heart, and they tell nothing about others. More pairs, fewer passes '
      f'({case.knob("train.num_steps")}), or other held-out pairs (data.eval).'
    )
  return (
    f'accuracy stays at 50 % (held-out {accuracy:.0%}): the labels tell the '
    'policy nothing. Not usual: look at pairs with --mode=show (are chosen and '
    f'rejected mixed?), then raise {case.knob("optim.learning_rate")} or '
    f'{case.knob("train.num_steps")}.'
  )


def drifted(case: Case) -> str:
  """The data's answers are far less likely than under the reference."""
  each = _drift(case)
  if not each > FAR:
    return ''
  return (
    f'the policy is far from the reference: kl {short(case.last["kl"])}, '
    f'{short(each)} nats per token, so that each token of the data is '
    f'{short(math.exp(min(each, 700)))} times less likely. Samples often get '
    f'worse at high KL (arXiv:2406.02900). Raise {case.knob("loss.beta")}, or '
    f'lower {case.knob("optim.learning_rate")} or '
    f'{case.knob("train.num_steps")}.'
  )


def both_fell(case: Case) -> str:
  """Chosen answers are less likely, and rejected ones too: displacement."""
  chosen, rejected = case.change('logps/chosen'), case.change('logps/rejected')
  share = case.last.get('displacement', 1.0)
  if not (chosen < 0 and rejected < 0 and share > MOST):
    return ''
  text = (
    f'both rewards fall: chosen answers lost {short(-chosen)} nats, rejected '
    f'ones {short(-rejected)}'
  )
  if 'displacement' in case.last:
    text += f'; {share:.0%} of the chosen ones are less likely than before'
  if chosen > rejected:
    usual = 'Usual in kind, not in size' if _drift(case) > FAR else 'Usual'
    text += (
      f'. {usual}: the loss asks only for the gap, which grew by '
      f'{short(chosen - rejected)} (arXiv:2410.08847)'
    )
  else:
    text += '. Not usual: the chosen ones lost more'
  if case.has_loss('dpop'):
    knob = f'raise {case.knob("loss.penalty")}'
  elif any(case.has_loss(name) for name in ('nll', 'sft', 'orpo', 'cpo')):
    knob = 'raise the weight of the likelihood term'
  else:
    knob = 'add loss.terms.nll=0.2, or use loss.terms.dpop'
  return f'{text}. To hold the chosen ones, {knob}.'


def saturated(case: Case) -> str:
  """Nothing is left to learn from the training pairs."""
  losses = case.steps('train', 'loss')
  start, end = losses.get(min(losses, default=0), math.nan), mean_at_end(losses)
  accuracy = mean_at_end(case.steps('train', 'rewards/accuracies'))
  if not (start > 0 and end < SATURATED * start and accuracy > 0.99):
    return ''
  margin = mean_at_end(case.steps('train', 'rewards/margins'))
  return (
    f'margins are saturated: training loss {short(end)}, {accuracy:.0%} won '
    f'with a mean margin of {short(margin)}. Usual after several passes; more '
    f'updates change little. Lower {case.knob("train.num_steps")}, or give the '
    'margin a finite target: loss.label_smoothing=0.1 or loss.terms.ipo.'
  )


def spikes(case: Case) -> str:
  """Some gradient is far larger than the others, and was not clipped."""
  norms = case.steps('train', 'grad_norm')
  if len(norms) < LEAST_STEPS or case.knobs.get('optim.clip_norm'):
    return ''
  median = float(np.median(list(norms.values())))
  step = max(norms, key=norms.__getitem__)
  large = sum(norm > SPIKE * median for norm in norms.values())
  if not large or not median > 0:
    return ''
  return (
    f'gradients jump: grad_norm {short(norms[step])} at step {step} is '
    f'{short(norms[step] / median)} times the median ({large} of {len(norms)} '
    f'steps above {SPIKE:g} times). Not usual: set '
    f'optim.clip_norm={short(2 * median)}, or raise '
    f'{case.knob("optim.warmup_steps")} if it was early.'
  )


# (short name, symptom), the gravest first.
SYMPTOMS: tuple[tuple[str, Callable[[Case], str]], ...] = (
  ('a number that was not finite', not_finite),
  ('held-out loss above its start', worse),
  ('overfit', overfit),
  ('hardly moved', hardly_moved),
  ('accuracy of chance', chance),
  ('far from the reference', drifted),
  ('both rewards fall', both_fell),
  ('length grows', pair_symptoms.longer),
  ('labels may be wrong', pair_symptoms.noise),
  ('ties', pair_symptoms.ties),
  ('gradients jump', spikes),
  ('margins are saturated', saturated),
)


def healthy(case: Case) -> str:
  """The numbers of a run without symptoms."""
  parts, losses = [], case.steps('eval', 'loss')
  if case.change('loss') < 0:
    ends = case.first['loss'], case.last['loss']
    parts.append(f'held-out loss {short(ends[0])} -> {short(ends[1])}')
    if len(losses) > 2 and _best_step(case) == max(losses):
      parts.append('lowest at the last step')
  if 'rewards/accuracies' in case.last and not _is_start(case):
    parts.append(f'accuracy {case.last["rewards/accuracies"]:.0%}')
  gained = case.change('logps/chosen')
  if not math.isnan(gained):
    change = 'gained' if gained >= 0 else 'lost'
    parts.append(f'chosen answers {change} {short(abs(gained))} nats')
  return f'nothing stands out: {", ".join(parts) or "nothing was measured"}.'


def _best_step(case: Case) -> int | None:
  """The first step with the lowest held-out loss."""
  losses = case.steps('eval', 'loss')
  return min(losses, key=losses.__getitem__) if losses else None


def _keep_best(case: Case) -> str:
  if case.knobs.get('train.keep_best'):
    return '--step=best reads'
  return "train.keep_best='-loss' keeps"


def _drift(case: Case) -> float:
  """KL per token of the data's answers; NaN without a reference."""
  tokens = [case.last.get(f'lengths/{s}') for s in ('chosen', 'rejected')]
  tokens = [each for each in tokens if each]
  if not tokens or 'kl' not in case.last:
    return math.nan
  return case.last['kl'] / float(np.mean(tokens))


def _is_start(case: Case) -> bool:
  """Whether policy and reference are equal: no reward differs."""
  return case.last.get('rewards/margins') == 0
