"""tokens -> tokens that fit: cuts a record to the maximum length.

Comes in: token ids of one prompt and of all its completions. Goes out: ids
that fit, or ledger.Dropped. All completions of a record keep the identical
prompt.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from dpo_jax import errors
from dpo_jax.data.text.ledger import Dropped

# Policies for a record whose prompt + longest completion exceed max_length.
POLICIES = {
  'drop': 'the record is dropped',
  'keep_prompt_end': 'the prompt loses its beginning; a BOS stays',
  'keep_completion_start': 'completions lose their end, and with it their EOS',
}

Ids = Sequence[int]


def check(policy: str) -> None:
  """Refuses an unknown policy."""
  if policy not in POLICIES:
    raise errors.refuse(
      'config.data.truncation',
      f'unknown value {policy!r}',
      f'{errors.did_you_mean(policy, POLICIES)}use one of '
      f'{", ".join(POLICIES)}',
    )


def fit(
  prompt: Ids,
  completions: Sequence[Ids],
  policy: str,
  max_length: int,
  prompt_max_length: int | None = None,
  *,
  num_begin: int = 0,
) -> tuple[Ids, list[Ids]] | Dropped:
  """Cuts the prompt or the completions of a record.

  Args:
    prompt: one or more tokens.
    completions: one or more tokens each.
    policy: a key of POLICIES.
    max_length: most tokens of prompt + longest completion.
    prompt_max_length: most tokens of the prompt. With 'drop', a record with a
      longer prompt is dropped; otherwise the prompt loses its beginning
      before anything else is cut.
    num_begin: tokens at the beginning of the prompt (BOS) that a cut keeps.

  Returns:
    Prompt and completions, one or more tokens each; or Dropped.
  """
  # One cut for all completions: they must follow the identical prompt.
  longest = max(map(len, completions))
  if prompt_max_length is not None and len(prompt) > prompt_max_length:
    if policy == 'drop':
      return Dropped('prompt_too_long')
    prompt = _end_of(prompt, prompt_max_length, num_begin)
  if len(prompt) + longest <= max_length:
    return prompt, list(completions)
  if policy == 'keep_prompt_end':
    if longest >= max_length:
      return Dropped('completion_fills_window')
    return _end_of(prompt, max_length - longest, num_begin), list(completions)
  # Cutting completions, or dropping: both need room after the prompt.
  if len(prompt) >= max_length:
    return Dropped('prompt_fills_window')
  if policy == 'drop':
    return Dropped('too_long')
  return prompt, [ids[: max_length - len(prompt)] for ids in completions]


def count_cuts(
  given: tuple[Ids, Sequence[Ids]],
  cut: tuple[Ids, Sequence[Ids]],
  counters: Counter[str],
) -> None:
  """Counts, by a key of ledger.COUNTERS, which texts `fit` made shorter.

  Args:
    given: prompt and completions before the cut.
    cut: the same after it.
    counters: receives the counts.
  """
  counters['truncated_prompts'] += len(cut[0]) < len(given[0])
  counters['truncated_completions'] += sum(
    len(a) < len(b) for a, b in zip(cut[1], given[1])
  )


def fit_masks(
  completions: Sequence[np.ndarray], masks: Sequence[np.ndarray | None]
) -> tuple[np.ndarray, ...] | None:
  """Fits masks to completions that were cut or got an EOS, which is trained.

  Args:
    completions: final token ids, int32 [n_k] each.
    masks: trained tokens of each completion before EOS and truncation, bool;
      None = all.

  Returns:
    bool [n_k] per completion; None if every token of every one is trained.
  """
  if all(mask is None for mask in masks):
    return None
  trained = []
  for ids, mask in zip(completions, masks):
    fitted = np.ones(len(ids), bool)
    if mask is not None:
      fitted[: len(mask)] = mask[: len(ids)]
    trained.append(fitted)
  return tuple(trained)


def _end_of(prompt: Ids, size: int, num_begin: int) -> list[int]:
  """The last tokens of a prompt, after its BOS if that fits too."""
  num_begin = num_begin if num_begin < size else 0
  return [*prompt[:num_begin], *prompt[len(prompt) - size + num_begin :]]
