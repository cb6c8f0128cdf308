"""text -> tokens: PreferenceRecords become EncodedRecords, with a ledger.

Comes in: records, a tokenizer, options. Goes out: token ids of the prompt and
of each completion, and counts of everything that was dropped, cut or changed.
Touches no disk and places nothing in rows. Every completion token is a target;
in a chat, chat.py selects which. Masks come from lengths and characters, never
from comparing token ids.

The rules:
  Boundary. Prompt and completion are tokenised separately, the completion as
    the continuation of a text (encoders.py). All completions of a record
    follow the same prompt tokens, and generation starts from these.
  BOS and EOS. ends.py adds each once.
  Token ids given in the data are used as they are: nothing is added.
  Truncation follows one of truncation.POLICIES. A truncated completion gets
    no EOS.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dpo_jax import errors
from dpo_jax.data.text import (
  chat,
  checks,
  dialogues,
  preferences,
  templates,
  truncation,
)
from dpo_jax.data.text.encoders import Tokenizer
from dpo_jax.data.text.ends import Ends
from dpo_jax.data.text.ledger import REASONS, Dropped, Ledger
from dpo_jax.data.text.templates import Piece
from dpo_jax.types import EncodedRecord, PreferenceRecord

# Rises when the same options give other tokens; part of the token cache's key.
VERSION = 3
CHUNK = 1000  # records that go to the tokenizer at once


# Field names and values are part of the token cache's key: a change of either
# makes every run encode its data again.
class EncodeOptions(NamedTuple):
  """Options of encoding."""

  max_length: int  # tokens of prompt + longest completion
  truncation: str = 'drop'  # one of truncation.POLICIES
  prompt_max_length: int | None = None  # tokens of the prompt
  stage: str = 'dpo'  # 'sft': only the best completion of each record
  add_eos: bool = True  # completions end with EOS
  add_bos: bool | None = None  # None: the tokenizer decides
  use_chat_template: bool = False  # for plain text too, as user and assistant
  chat_template: str | None = None  # Jinja; None: the tokenizer's
  template_args: Mapping[str, Any] | tuple = ()  # further template variables
  template_date: str = ''  # YYYY-MM-DD; '' for templates that write no date
  train_on: str = 'last'  # trained part of a chat, one of chat.TRAIN_ON
  allow_control_tokens: bool = False  # typed ones act as control tokens
  drop_duplicates: bool = True
  strict: bool = False  # refuse a record instead of dropping it


class _Draft(NamedTuple):
  """A record with its texts, before it is tokenised."""

  record: PreferenceRecord
  form: str  # 'text', 'chat' or 'ids'
  prompt: Any  # pieces; token ids if form is 'ids'
  completions: Sequence[Any]  # of each: pieces, or token ids
  ended: tuple[bool, ...]  # of each completion: whether it gets no EOS
  spans: tuple[chat.Spans | None, ...] = ()  # trained characters; None = all
  others_last: bool = False  # a completion ends in a turn that is not trained


def encode_all(
  records: Iterable[PreferenceRecord],
  tokenizer: Tokenizer,
  options: EncodeOptions,
) -> tuple[list[EncodedRecord], Ledger]:
  """Encodes every record.

  Args:
    records: encoded in this order.
    tokenizer: from tokenizer.load.
    options: see EncodeOptions.

  Returns:
    The encoded records in order, and the balanced ledger.

  Raises:
    InputError: a token id is outside the vocabulary, a template refuses the
      messages, or a chat has no template; with options.strict, also any
      record that would be dropped.
  """
  ledger = Ledger()
  return list(encode_stream(records, tokenizer, options, ledger)), ledger


def encode_stream(
  records: Iterable[PreferenceRecord],
  tokenizer: Tokenizer,
  options: EncodeOptions,
  ledger: Ledger,
) -> Iterator[EncodedRecord]:
  """Yields the records of encode_all; `ledger` is filled on the way."""
  encoder = Encoder(tokenizer, options)
  seen = set() if options.drop_duplicates else None
  for chunk in chunks(records):
    encoded, counts = encoder.encode(chunk)
    is_kept = ledger.add(counts, [record.uid for record in encoded], seen)
    yield from itertools.compress(encoded, is_kept)


def chunks(records: Iterable[PreferenceRecord]) -> Iterator[list]:
  """Yields the records in the lists that Encoder.encode takes."""
  records = iter(records)
  while chunk := list(itertools.islice(records, CHUNK)):
    yield chunk


class Encoder:
  """Encodes chunks of records, each by itself: processes may share them."""

  def __init__(self, tokenizer: Tokenizer, options: EncodeOptions):
    """Compiles nothing yet."""
    truncation.check(options.truncation)
    self.tokenizer = tokenizer
    self.options = options
    self.ledger = ledger = Ledger()  # of the chunk in work
    self.ends = Ends(
      tokenizer,
      add_bos=options.add_bos,
      add_eos=options.add_eos,
      counters=ledger.counters,
    )
    # Compiled on first use; True: for records with tools.
    self.templates: dict[bool, templates.ChatTemplate] = {}

  def encode(self, chunk: list) -> tuple[list[EncodedRecord], Ledger]:
    """Returns the records of a chunk that can be used, and its counts.

    Duplicates are among them: Ledger.add, which sees all chunks, finds these.
    """
    self.ledger.read += len(chunk)
    # One call of the tokenizer per chunk: it works on many texts in parallel.
    drafts = [self.draft(record) for record in chunk]
    usable = [draft for draft in drafts if not isinstance(draft, Dropped)]
    tokens = iter(self.tokenise(usable))
    encoded = []
    for record, draft in zip(chunk, drafts):
      done = draft
      if not isinstance(draft, Dropped):
        done = self.finish(draft, *next(tokens))
      if isinstance(done, Dropped):
        self.drop(done.reason, record.where)
      else:
        encoded.append(done)
    return encoded, self.ledger.pop()

  def drop(self, reason: str, where: str) -> None:
    """Counts a dropped record; with options.strict, refuses it."""
    if self.options.strict:
      problem, fix = REASONS[reason]
      raise errors.refuse(where, f'{problem} ({reason})', fix)
    self.ledger.drop(reason, where)

  def draft(self, record: PreferenceRecord) -> _Draft | Dropped:
    """Returns the texts to tokenise, or Dropped."""
    record = preferences.for_stage(record, self.options.stage)
    if isinstance(record, Dropped):
      return record
    form = checks.form(record)
    if form == 'ids':
      return _Draft(record, form, record.prompt, record.completions, ())
    if form == 'chat':
      checks.messages(record)
    # Counted whether or not they will act as control tokens.
    if self.tokenizer.control_tokens.found_in(
      [record.prompt, *record.completions]
    ):
      self.ledger.counters['control_tokens_in_text'] += 1
    if form == 'text':
      checks.texts(
        record,
        self.tokenizer,
        allow_control_tokens=self.options.allow_control_tokens,
      )
      if not self.options.use_chat_template:
        return self.text_draft(record)
      record = chat.as_messages(record)
    return self.chat_draft(record)

  def text_draft(self, record: PreferenceRecord) -> _Draft:
    """Returns the strings as they are."""
    is_content = not self.options.allow_control_tokens
    spans = [dialogues.trained(record.prompt, c) for c in record.completions]
    self.ledger.counters['human_turns'] += any(s is not None for s in spans)
    return self.make_draft(
      record,
      'text',
      (Piece(record.prompt, is_content),),
      [(Piece(text, is_content),) for text in record.completions],
      spans,
      [
        span is not None and (not span or span[-1][1] < len(text))
        for span, text in zip(spans, record.completions)
      ],
    )

  def chat_draft(self, record: PreferenceRecord) -> _Draft | Dropped:
    """Returns the rendered messages, or Dropped."""
    if not record.prompt:
      return Dropped('empty_prompt')
    if not all(map(chat.says_something, record.completions)):
      return Dropped('empty_completion')
    counters = self.ledger.counters
    counters['prefilled'] += record.continues
    record, prefix = chat.join_prefill(record)
    # SFT on all turns: those of the prompt are then part of the answer.
    if self.options.train_on != 'last' and self.options.stage == 'sft':
      record, prefix = chat.from_first_answer(record), ''
    try:
      rendered = self.render(record, prefix)
    except templates.UnsafeText:
      return Dropped('control_tokens')
    counters['chats'] += 1
    counters['reasoning_not_written'] += chat.omits_reasoning(record, rendered)
    counters['arguments_quoted'] += chat.quotes_arguments(record, rendered)
    counters['nulls_in_tools'] += chat.has_nulls(record)
    others_last = [c[-1]['role'] != 'assistant' for c in record.completions]
    return self.make_draft(record, 'chat', *rendered, others_last)

  def make_draft(
    self, record, form, prompt, completions, spans, others_last
  ) -> _Draft:
    """Returns the draft, with each completion cut after its stop token."""
    trimmed = [self.ends.trim(pieces) for pieces in completions]
    return _Draft(
      record,
      form,
      prompt,
      [pieces for pieces, _ in trimmed],
      # The model does not end a text in which others speak last.
      tuple(
        is_ended or is_others
        for (_, is_ended), is_others in zip(trimmed, others_last)
      ),
      tuple(spans),
      any(others_last),
    )

  def render(self, record: PreferenceRecord, prefix: str) -> chat.Rendered:
    """Renders a chat; the template is compiled for the first one."""
    options = self.options
    has_tools = record.tools is not None
    if has_tools not in self.templates:
      self.templates[has_tools] = chat.make_template(
        self.tokenizer,
        options.chat_template,
        template_args=dict(options.template_args),
        train_on=options.train_on,
        where=record.where,
        date=options.template_date,
        has_tools=has_tools,
      )
    return chat.render_record(
      self.templates[has_tools],
      record.prompt,
      record.completions,
      prefix=prefix,
      where=record.where,
      ends_turn=self.tokenizer.first_stop,
      allow_control_tokens=options.allow_control_tokens,
      tools=None if record.tools is None else list(record.tools),
      **dict(options.template_args),
    )

  def tokenise(self, drafts: list[_Draft]) -> list[tuple]:
    """Returns (prompt ids, completions' ids, masks) per draft.

    Neither BOS nor EOS is added. A mask is None if every token is trained.
    """
    # Two calls for all drafts; the results are dealt out in the same order.
    texts = [draft for draft in drafts if draft.form != 'ids']
    encode = self.tokenizer.encode_batch
    prompts = iter(encode([draft.prompt for draft in texts]))
    completions = iter(
      encode([c for d in texts for c in d.completions], continues=True)
    )
    self.count_merges(texts)
    return [
      (draft.prompt, list(draft.completions), [None] * len(draft.completions))
      if draft.form == 'ids'
      else (
        next(prompts),
        [next(completions) for _ in draft.completions],
        [*map(self.mask, draft.completions, draft.spans)],
      )
      for draft in drafts
    ]

  def mask(
    self, pieces: Sequence[Piece], spans: chat.Spans | None
  ) -> np.ndarray | None:
    """Returns the trained tokens of a completion; None = all."""
    if spans is None:
      return None
    # None for a mask of ones: such a record's uid then contains no mask.
    mask = self.tokenizer.masks([pieces], [spans])[0]
    return None if mask.all() else mask

  def count_merges(self, drafts: list[_Draft]) -> None:
    """Counts records in which a joint tokenisation would cross the boundary."""
    owners, pairs = [], []  # index of the draft; (prompt, completion)
    for i, draft in enumerate(drafts):
      prompt = _text(draft.prompt)
      for completion in draft.completions:
        if prompt and completion:
          owners.append(i)
          pairs.append((prompt, _text(completion)))
    merged = self.tokenizer.merges(pairs)
    self.ledger.counters['boundary_merges'] += len(
      {owner for owner, is_merged in zip(owners, merged) if is_merged}
    )

  def finish(
    self,
    draft: _Draft,
    prompt: Sequence[int],
    completions: list[Sequence[int]],
    masks: list[np.ndarray | None],
  ) -> EncodedRecord | Dropped:
    """Adds BOS and EOS, truncates, checks, and gives the record its uid.

    Args:
      draft: the record.
      prompt: token ids from `tokenise`.
      completions: token ids of each completion, from `tokenise`.
      masks: trained tokens of each completion; None = all.

    Returns:
      The encoded record, or Dropped.
    """
    record = draft.record
    # An EOS that one side lacks, as others speak last in it, makes no sides
    # different.
    sizes = [*map(len, completions)] if draft.others_last else None
    if draft.form == 'ids':
      checks.ids((prompt, *completions), self.tokenizer, record.where)
    else:
      prompt = self.ends.with_begin(prompt, is_chat=draft.form == 'chat')
      completions = self.ends.with_eos(completions, draft.ended)
    if not len(prompt):
      return Dropped('empty_prompt')
    if not all(map(len, completions)):
      return Dropped('empty_completion')
    options, counters = self.options, self.ledger.counters
    cut = truncation.fit(
      prompt,
      completions,
      options.truncation,
      options.max_length,
      options.prompt_max_length,
      num_begin=len(self.ends.begin_of(prompt)),
    )
    if isinstance(cut, Dropped):
      return cut
    truncation.count_cuts((prompt, completions), cut, counters)
    arrays = tuple(np.asarray(ids, np.int32) for ids in cut[1])
    trained = truncation.fit_masks(arrays, masks)
    if trained is not None and not all(map(np.any, trained)):
      return Dropped('nothing_trained')
    counters['untrained_tokens'] += sum(
      len(mask) - int(np.count_nonzero(mask)) for mask in trained or ()
    )
    # After truncation, which can make two sides equal.
    sides = preferences.trained_sides(arrays, trained, sizes)
    left = preferences.without_identical(record.comparisons, sides)
    if record.comparisons and not left and record.labels is None:
      return Dropped('identical_sides')
    counters['identical_comparisons'] += len(record.comparisons) - len(left)
    return preferences.with_uid(
      EncodedRecord(
        np.asarray(cut[0], np.int32),
        arrays,
        left,
        record.labels,
        record.scores,
        trained=trained,
        quantiles=record.quantiles,
      )
    )


def _text(pieces: Sequence[Piece]) -> str:
  return ''.join(piece.text for piece in pieces)
