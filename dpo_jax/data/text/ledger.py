"""encoding -> counts: what became of every record that was read.

Comes in: events of encoding. Goes out: counts that must balance, as lines of
text and as JSON for the run directory. Encodes nothing, prints nothing.
"""

import collections
import copy
import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

# Reasons to drop a record, each with the problem and the fix.
REASONS = {
  'empty_prompt': (
    'the prompt has no tokens and the tokenizer has neither BOS nor EOS',
    'give a prompt',
  ),
  'empty_completion': (
    'a completion is empty',
    'fill it in, or remove the row',
  ),
  'identical_sides': (
    'chosen and rejected have the same trained tokens',
    'remove the row, or raise data.max_length if they were cut to be the same',
  ),
  'no_preference': (
    'no completion is preferred to another and none has a label',
    'give pairs, different scores or a label, or imitate with stage=sft',
  ),
  'undesirable': (
    'the only completion is labelled undesirable, and SFT imitates',
    'remove the row from the SFT data',
  ),
  'too_long': (
    'prompt and longest completion exceed data.max_length',
    'raise data.max_length, or set data.truncation',
  ),
  'prompt_fills_window': (
    'the prompt leaves no room for a completion in data.max_length',
    "raise data.max_length, or set data.truncation='keep_prompt_end'",
  ),
  'completion_fills_window': (
    'a completion leaves no room for the prompt in data.max_length',
    "raise data.max_length, or set data.truncation='keep_completion_start'",
  ),
  'prompt_too_long': (
    'the prompt exceeds data.prompt_max_length',
    'raise data.prompt_max_length, or set data.truncation',
  ),
  'nothing_trained': (
    'a completion has no token that is trained: none of the assistant, or the '
    'chat template marks none',
    'see data.train_on, or raise data.max_length if it was cut',
  ),
  'non_finite': (
    'a weight, margin or score is not finite',
    'give finite numbers',
  ),
  'control_tokens': (
    'a message holds control tokens that the chat template rewrites',
    'remove them from the message',
  ),
}

# Further counts, each with the thing that is counted.
COUNTERS = {
  'truncated_prompts': 'records whose prompt lost its beginning',
  'truncated_completions': 'completions that lost their end, and so their EOS',
  'human_turns': "records of Human/Assistant text whose answers hold a human's "
  'turn; it is read and not trained',
  'prefilled': 'records whose answers continue the last turn of the prompt',
  'reasoning_not_written': 'records with reasoning that the chat template does '
  'not write',
  'arguments_quoted': 'records with a tool call whose arguments are JSON text, '
  'which the chat template quotes once more: objects are written plainly',
  'nulls_in_tools': 'records with a null in a tool call or a function schema, '
  'as in JSONL exported from Arrow, where it stands for a key of another row',
  'boundary_merges': 'records whose prompt and completion would share a token '
  'if they were tokenised together',
  'control_tokens_in_text': 'records whose text holds a control token',
  'chats': 'records that a chat template rendered',
  'untrained_tokens': 'tokens of completions that are read and not trained: '
  "others' turns, or outside of the template's generation blocks",
  'bos_added_to_template': 'records whose chat template writes no BOS although '
  'the tokenizer adds one',
  'trimmed_after_eos': 'completions whose template writes white space after '
  'EOS; it is left out',
  'completions_without_eos': 'completions that got no EOS as the tokenizer has '
  'none',
  'identical_comparisons': 'comparisons of completions with equal trained '
  'tokens, left out of records that have others',
}


class Dropped(NamedTuple):
  """The result of encoding a record that cannot be used."""

  reason: str  # a key of REASONS


@dataclasses.dataclass
class Ledger:
  """Counts of records: read == kept + sum(dropped) + duplicates."""

  read: int = 0
  kept: int = 0
  duplicates: int = 0
  dropped: collections.Counter[str] = dataclasses.field(
    default_factory=collections.Counter
  )  # by reason, a key of REASONS
  counters: collections.Counter[str] = dataclasses.field(
    default_factory=collections.Counter
  )  # by name, a key of COUNTERS
  first: dict[str, str] = dataclasses.field(
    default_factory=dict
  )  # reason -> place (`path:line`) of the first record dropped for it

  def drop(self, reason: str, where: str) -> None:
    """Counts a dropped record."""
    self.dropped[reason] += 1
    self.first.setdefault(reason, where)

  def pop(self) -> 'Ledger':
    """Returns these counts; this ledger starts again from zero."""
    counts = copy.deepcopy(self)
    self.read = self.kept = self.duplicates = 0
    # In place: others hold these mappings.
    for mapping in (self.dropped, self.counters, self.first):
      mapping.clear()
    return counts

  def add(
    self, counts: 'Ledger', uids: Sequence[Any], seen: set | None
  ) -> list[bool]:
    """Adds the counts of the next part of the data.

    Args:
      counts: of the part, without `kept` and `duplicates`.
      uids: of its records that can be used.
      seen: uids of the parts before, to which these are added; None if
        duplicates are kept.

    Returns:
      Which of these records are kept: all but the duplicates.
    """
    is_kept = []
    for uid in uids:
      is_kept.append(seen is None or uid not in seen)
      if seen is not None:
        seen.add(uid)
    self.read += counts.read
    self.kept += sum(is_kept)
    self.duplicates += len(is_kept) - sum(is_kept)
    # A Counter keeps keys of zero here, as counting one by one does.
    self.dropped.update(counts.dropped)
    self.counters.update(counts.counters)
    for reason, where in counts.first.items():
      self.first.setdefault(reason, where)
    return is_kept

  def main_reason(self) -> tuple[str, str]:
    """Returns (problem, fix) of the reason that dropped most records."""
    if not self.dropped:
      return f'{self.read} records were read', 'raise data.proportions'
    ((reason, count),) = self.dropped.most_common(1)
    problem, fix = REASONS[reason]
    return f'{problem} ({reason}, {count} of {self.read} records)', fix

  def balanced(self) -> bool:
    """Whether kept, dropped and duplicates add up to the records read."""
    return self.read == self.kept + self.dropped.total() + self.duplicates

  def lines(self) -> list[str]:
    """Returns a summary for people, in one to three lines."""
    dropped = self.dropped.total()
    lines = [
      f'records: read {self.read:,} = kept {self.kept:,} + dropped '
      f'{dropped:,} + duplicates {self.duplicates:,}'
      f'{"" if self.balanced() else "  (DOES NOT BALANCE)"}'
    ]
    if dropped:
      lines.append(
        'dropped: '
        + ', '.join(
          f'{reason} {count:,} (first: {self.first.get(reason) or "?"})'
          for reason, count in self.dropped.most_common()
        )
      )
    counted = [f'{k} {v:,}' for k, v in self.counters.most_common() if v]
    if counted:
      lines.append('counted: ' + ', '.join(counted))
    return lines

  def as_dict(self) -> dict[str, Any]:
    """Returns plain JSON with every counter; Ledger.from_dict reads it."""
    return {
      'read': self.read,
      'kept': self.kept,
      'duplicates': self.duplicates,
      'dropped': dict(self.dropped),
      'counters': {name: self.counters[name] for name in COUNTERS},
      'first': dict(self.first),
    }

  @classmethod
  def from_dict(cls, values: dict[str, Any]) -> 'Ledger':
    """Returns the ledger that as_dict wrote."""
    return cls(
      **{
        **values,
        'dropped': collections.Counter(values['dropped']),
        'counters': collections.Counter(values['counters']),
      }
    )
