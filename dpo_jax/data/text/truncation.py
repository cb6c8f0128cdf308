"""Cutting a record's token ids to a window.

Comes in: token ids of one prompt and of all its completions. Goes out: ids
that fit, or the reason (a key of ledger.REASONS) why the record is dropped.
All completions of a record keep the identical prompt.
"""

from collections.abc import Sequence

import numpy as np

from dpo_jax import errors

# What is done where prompt + longest completion exceed the window.
POLICIES = {
  'drop': 'the record is dropped',
  'keep_prompt_end': 'the prompt loses its beginning; a BOS stays',
  'keep_completion_start': 'completions lose their end, and with it their EOS',
}

Ids = Sequence[int]


def check(policy: str) -> None:
  """Refuses a policy that there is not."""
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
) -> tuple[Ids, list[Ids]] | str:
  """Cuts prompt or completions.

  Args:
    prompt: one token or more.
    completions: likewise, each.
    policy: a key of POLICIES.
    max_length: tokens of prompt + longest completion.
    prompt_max_length: tokens of the prompt; with 'drop' a longer one is
      dropped, else it loses its beginning before anything else is cut.
    num_begin: tokens at the prompt's beginning (BOS) that a cut leaves there.

  Returns:
    Prompt and completions, one token or more each, or the reason to drop.
  """
  longest = max(map(len, completions))
  if prompt_max_length is not None and len(prompt) > prompt_max_length:
    if policy == 'drop':
      return 'prompt_too_long'
    prompt = _end_of(prompt, prompt_max_length, num_begin)
  if len(prompt) + longest <= max_length:
    return prompt, list(completions)
  if policy == 'keep_prompt_end':
    if longest >= max_length:
      return 'completion_fills_window'
    return _end_of(prompt, max_length - longest, num_begin), list(completions)
  if len(prompt) >= max_length:
    return 'prompt_fills_window'
  if policy == 'drop':
    return 'too_long'
  return prompt, [ids[: max_length - len(prompt)] for ids in completions]


def fit_masks(
  completions: Sequence[np.ndarray], masks: Sequence[np.ndarray | None]
) -> tuple[np.ndarray, ...] | None:
  """Masks of the length of their completions; an EOS put there is trained."""
  if all(mask is None for mask in masks):
    return None
  trained = []
  for ids, mask in zip(completions, masks):
    whole = np.ones(len(ids), bool)
    if mask is not None:
      whole[: len(mask)] = mask[: len(ids)]
    trained.append(whole)
  return tuple(trained)


def _end_of(prompt: Ids, size: int, num_begin: int) -> list[int]:
  """The last tokens of a prompt, after its BOS where there is room for it."""
  num_begin = num_begin if num_begin < size else 0
  return [*prompt[:num_begin], *prompt[len(prompt) - size + num_begin :]]
