"""text -> tokens: PreferenceRecords become EncodedRecords, with a ledger.

Comes in: records, a tokenizer, options. Goes out: token ids of the prompt and
of each completion, and a count of everything that was dropped, cut or changed.
Touches no disk and places nothing in rows. What is learnt is each completion,
of a chat what chat.py says; masks never come of comparing ids.

The rules:
  Boundary. Prompt and completion are tokenised apart, the completion as the
    continuation of a text (encoders.py). All completions of a record follow
    the identical prompt tokens, and generation starts from just those.
  BOS. A prompt begins with what the tokenizer puts before every text, once:
    where a chat template has written it, none is added.
  EOS. Every completion ends with EOS once. A rendered completion that ends,
    but for white space, with a stop token (EOS, or another eos_token_id of
    generation_config.json) ends right there; else EOS is added.
  An empty prompt is BOS, else EOS, alone.
  Token ids are taken as they are: nothing is added.
  Truncation is one of truncation.POLICIES; where an answer is cut, no EOS is
    put or trained.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from dpo_jax import errors
from dpo_jax.data.sources import conversations
from dpo_jax.data.text import chat, preferences, templates, truncation
from dpo_jax.data.text.encoders import Tokenizer
from dpo_jax.data.text.ledger import REASONS, Ledger
from dpo_jax.data.text.templates import Piece
from dpo_jax.types import EncodedRecord, PreferenceRecord

_CHUNK = 1000  # records that go to the tokenizer at once


class EncodeOptions(NamedTuple):
  """How records are encoded."""

  max_length: int  # tokens of prompt + longest completion
  truncation: str = 'drop'  # one of truncation.POLICIES
  prompt_max_length: int | None = None  # tokens of the prompt
  stage: str = 'dpo'  # 'sft': the best completion of each record only
  add_eos: bool = True  # completions end with EOS
  add_bos: bool | None = None  # None: as the tokenizer does
  use_chat_template: bool = False  # plain text too: a user's, an assistant's
  chat_template: str | None = None  # Jinja; None: the tokenizer's
  template_args: Mapping[str, Any] | tuple = ()  # further template variables
  train_on: str = 'last'  # of a chat, one of chat.TRAIN_ON
  allow_control_tokens: bool = False  # as text they stay control tokens
  drop_duplicates: bool = True
  strict: bool = False  # refuse what would be dropped


class _Draft(NamedTuple):
  """A record whose text is known, on its way to the tokenizer."""

  record: PreferenceRecord
  form: str  # 'text', 'chat' or 'ids'
  prompt: Any  # pieces; token ids where form is 'ids'
  completions: Sequence[Any]  # likewise
  ended: tuple[bool, ...]  # completions that end with a stop token
  spans: tuple[chat.Spans | None, ...] = ()  # trained characters; None = all


def encode_all(
  records: Iterable[PreferenceRecord],
  tokenizer: Tokenizer,
  options: EncodeOptions,
) -> tuple[list[EncodedRecord], Ledger]:
  """Encodes every record.

  Args:
    records: in the order to keep.
    tokenizer: see tokenizer.load.
    options: see EncodeOptions.

  Returns:
    The encoded records in order, and the balanced ledger.

  Raises:
    InputError: a token id outside the vocabulary, a template that refuses the
      messages, chat records without a template; with options.strict, any
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
  """encode_all, a chunk at a time; `ledger` is filled on the way."""
  encoder = _Encoder(tokenizer, options, ledger)
  records = iter(records)
  while chunk := list(itertools.islice(records, _CHUNK)):
    yield from encoder.encode(chunk)


class _Encoder:
  """Tokenizer, options and ledger, with the uids that were seen."""

  def __init__(
    self, tokenizer: Tokenizer, options: EncodeOptions, ledger: Ledger
  ):
    truncation.check(options.truncation)
    self.tokenizer = tokenizer
    self.options = options
    self.ledger = ledger
    self.begin = tuple(tokenizer.begin)
    if options.add_bos is not None:
      self.begin = (tokenizer.bos_id,) if options.add_bos else ()
    if None in self.begin:
      raise errors.refuse(
        'config.data.add_bos',
        f'tokenizer {tokenizer.name} has no BOS to add',
        'leave data.add_bos at None, or name a bos_token in its files',
      )
    self.templates: dict[bool, templates.ChatTemplate] = {}  # by having tools
    self.seen: set[str] = set()

  def encode(self, chunk: list[PreferenceRecord]) -> list[EncodedRecord]:
    """The records of a chunk that are kept."""
    self.ledger.read += len(chunk)
    drafts = [self.draft(record) for record in chunk]
    tokens = iter(self.tokenise([d for d in drafts if not _is_reason(d)]))
    kept = []
    for record, draft in zip(chunk, drafts):
      done = draft if _is_reason(draft) else self.finish(draft, *next(tokens))
      if _is_reason(done):
        self.drop(done, record.where)
      elif self.options.drop_duplicates and done.uid in self.seen:
        self.ledger.duplicates += 1
      else:
        self.seen.add(done.uid)
        kept.append(done)
    self.ledger.kept += len(kept)
    return kept

  def drop(self, reason: str, where: str) -> None:
    """Counts the record, or refuses it."""
    if self.options.strict:
      problem, fix = REASONS[reason]
      raise errors.refuse(where, f'{problem} ({reason})', fix)
    self.ledger.drop(reason, where)

  def draft(self, record: PreferenceRecord) -> _Draft | str:
    """What to tokenise, or the reason why nothing."""
    record = preferences.for_stage(record, self.options.stage)
    if _is_reason(record):
      return record
    form = _form(record)
    if form == 'ids':
      return _Draft(record, form, record.prompt, record.completions, ())
    texts = [record.prompt, *record.completions]
    if self.tokenizer.control_tokens.found_in(texts):
      self.ledger.counters['control_tokens_in_text'] += 1
    if form == 'text' and not self.options.use_chat_template:
      for text in texts:
        conversations.text(text, 'text', record.where)
      is_content = not self.options.allow_control_tokens
      prompt, *completions = ((Piece(text, is_content),) for text in texts)
    else:
      if form == 'text':
        record = chat.as_messages(record)
      if not record.prompt:
        return 'empty_prompt'
      if not all(map(chat.says_something, record.completions)):
        return 'empty_completion'
      if self.options.train_on != 'last' and self.options.stage == 'sft':
        record = chat.from_first_answer(record)
      try:
        prompt, completions, spans = self.render(record)
      except templates.UnsafeText:
        return 'control_tokens'
      self.ledger.counters['chats'] += 1
      form = 'chat'
    ends = [self.trim(pieces) for pieces in completions]
    return _Draft(
      record,
      form,
      prompt,
      [pieces for pieces, _ in ends],
      tuple(ended for _, ended in ends),
      tuple(spans) if form == 'chat' else (None,) * len(ends),
    )

  def render(self, record: PreferenceRecord) -> chat.Rendered:
    """A chat record through the template, which is compiled when needed."""
    options = self.options
    has_tools = record.tools is not None
    if has_tools not in self.templates:
      self.templates[has_tools] = chat.make_template(
        self.tokenizer,
        options.chat_template,
        template_args=dict(options.template_args),
        train_on=options.train_on,
        where=record.where,
        has_tools=has_tools,
      )
    return chat.render_record(
      self.templates[has_tools],
      record.prompt,
      record.completions,
      where=record.where,
      ends_turn=self.tokenizer.first_stop,
      allow_control_tokens=options.allow_control_tokens,
      tools=None if record.tools is None else list(record.tools),
      **dict(options.template_args),
    )

  def trim(self, pieces: tuple[Piece, ...]) -> tuple[tuple[Piece, ...], bool]:
    """Without white space after a final stop token; whether there is one."""
    if not pieces or pieces[-1].is_content:
      return pieces, False
    text = pieces[-1].text.rstrip()
    last = Piece(text, False)
    if not self.tokenizer.ends_turn(last):
      return pieces, False
    if text != pieces[-1].text:
      self.ledger.counters['trimmed_after_eos'] += 1
    return (*pieces[:-1], last), True

  def tokenise(self, drafts: list[_Draft]) -> list[tuple]:
    """(prompt ids, completions' ids, masks) of each, nothing added."""
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
    """The trained tokens of a completion; None where all are."""
    if spans is None:
      return None
    mask = self.tokenizer.masks([pieces], [spans])[0]
    return None if mask.all() else mask

  def count_merges(self, drafts: list[_Draft]) -> None:
    """Counts the records where joint tokenisation crosses the boundary."""
    owners, pairs = [], []
    for i, draft in enumerate(drafts):
      prompt = _text(draft.prompt)
      for completion in draft.completions:
        if prompt and completion:
          owners.append(i)
          pairs.append((prompt, _text(completion)))
    merged = self.tokenizer.merges(pairs)
    self.ledger.counters['boundary_merges'] += len(
      {owner for owner, found in zip(owners, merged) if found}
    )

  def finish(
    self,
    draft: _Draft,
    prompt: Sequence[int],
    completions: list[Sequence[int]],
    masks: list[np.ndarray | None],
  ) -> EncodedRecord | str:
    """Adds BOS and EOS, cuts, checks and names; or the reason to drop."""
    record = draft.record
    if draft.form == 'ids':
      self.check_ids((prompt, *completions), record.where)
    else:
      prompt = self.with_begin(prompt, draft.form)
      completions = self.with_eos(completions, draft.ended)
    if not len(prompt):
      return 'empty_prompt'
    if not all(map(len, completions)):
      return 'empty_completion'
    cut = truncation.fit(
      prompt,
      completions,
      self.options.truncation,
      self.options.max_length,
      self.options.prompt_max_length,
      num_begin=len(self.begin_of(prompt)),
    )
    if _is_reason(cut):
      return cut
    counters = self.ledger.counters
    counters['truncated_prompts'] += len(cut[0]) < len(prompt)
    counters['truncated_completions'] += sum(
      len(a) < len(b) for a, b in zip(cut[1], completions)
    )
    arrays = tuple(np.asarray(ids, np.int32) for ids in cut[1])
    trained = truncation.fit_masks(arrays, masks)
    if trained is not None and not all(map(np.any, trained)):
      return 'nothing_trained'
    counters['untrained_tokens'] += sum(
      len(mask) - int(np.count_nonzero(mask)) for mask in trained or ()
    )
    left = preferences.without_identical(record.comparisons, arrays)
    if record.comparisons and not left and record.labels is None:
      return 'identical_sides'
    counters['identical_comparisons'] += len(record.comparisons) - len(left)
    return preferences.with_uid(
      EncodedRecord(
        np.asarray(cut[0], np.int32),
        arrays,
        left,
        record.labels,
        record.scores,
        trained=trained,
      )
    )

  def begin_of(self, prompt: Sequence[int]) -> tuple[int, ...]:
    """The ids of `begin`, where the prompt begins with them."""
    size = len(self.begin)
    return self.begin if tuple(prompt[:size]) == self.begin else ()

  def with_begin(self, prompt: list[int], form: str) -> list[int]:
    """The prompt with BOS where it belongs."""
    if self.begin and not self.begin_of(prompt):
      self.ledger.counters['bos_added_to_template'] += form == 'chat'
      prompt = [*self.begin, *prompt]
    if prompt:
      return prompt
    known = (self.tokenizer.bos_id, self.tokenizer.eos_id)
    return [token for token in known if token is not None][:1]

  def with_eos(
    self, completions: list[list[int]], ended: tuple[bool, ...]
  ) -> list[list[int]]:
    """Completions with their one EOS; one without other tokens stays empty."""
    done = []
    for ids, is_ended in zip(completions, ended):
      if len(ids) == is_ended:
        ids = []
      elif self.options.add_eos and not is_ended:
        if self.tokenizer.eos_id is None:
          self.ledger.counters['completions_without_eos'] += 1
        else:
          ids = [*ids, self.tokenizer.eos_id]
      done.append(ids)
    return done

  def check_ids(self, texts: Sequence[Sequence[int]], where: str) -> None:
    """Refuses ids that are not of the vocabulary."""
    size = self.tokenizer.vocab_size
    for ids in texts:
      for token in (min(ids, default=0), max(ids, default=0)):
        if not 0 <= token < size:
          raise errors.refuse(
            where,
            f'token id {token} is outside the vocabulary of {size} '
            f'(tokenizer {self.tokenizer.name})',
            f'give ids of 0 to {size - 1}, or the tokenizer they are of',
          )


def _is_reason(value: Any) -> bool:
  return isinstance(value, str)


def _form(record: PreferenceRecord) -> str:
  """'text', 'chat' or 'ids': what prompt and completions all are."""
  forms = set()
  for value in (record.prompt, *record.completions):
    if isinstance(value, str):
      forms.add('text')
    elif len(value):
      forms.add('chat' if isinstance(value[0], Mapping) else 'ids')
  if len(forms) > 1:
    raise errors.refuse(
      record.where,
      f'prompt and completions are of different forms: {sorted(forms)}',
      'give all as text, all as messages, or all as token ids',
    )
  return forms.pop() if forms else 'ids'


def _text(pieces: Sequence[Piece]) -> str:
  return ''.join(piece.text for piece in pieces)
