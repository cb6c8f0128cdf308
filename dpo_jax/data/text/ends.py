"""tokens -> tokens with ends: BOS at the prompt, EOS at each completion.

Comes in: token ids of a prompt and of its completions, without BOS and EOS.
Goes out: the same with BOS and EOS, each once. Encodes nothing; counts in the
ledger's counters what was added or trimmed.

BOS. A prompt begins with the ids that the tokenizer puts before every text. If
a chat template has written them, none are added. An empty prompt becomes BOS
alone, or EOS if the tokenizer has no BOS.
EOS. A completion ends with EOS once. If its template text ends with a stop
token (EOS, or another eos_token_id of generation_config.json), the completion
ends there: white space after it is trimmed and no EOS is added.
"""

from collections import Counter
from collections.abc import Sequence

from dpo_jax import errors
from dpo_jax.data.text.encoders import Tokenizer
from dpo_jax.data.text.templates import Piece


class Ends:
  """Adds BOS and EOS by the rules of a tokenizer and of two options."""

  def __init__(
    self,
    tokenizer: Tokenizer,
    *,
    add_bos: bool | None,
    add_eos: bool,
    counters: Counter[str],
  ):
    """Chooses the ids that begin a prompt.

    Args:
      tokenizer: has BOS, EOS and the stop tokens.
      add_bos: None follows the tokenizer.
      add_eos: whether completions get an EOS.
      counters: counts by a key of ledger.COUNTERS.

    Raises:
      InputError: add_bos is True and the tokenizer has no BOS.
    """
    self.tokenizer = tokenizer
    self.add_eos = add_eos
    self.counters = counters
    # The option replaces whatever the tokenizer adds.
    self.begin = tuple(tokenizer.begin)
    if add_bos is not None:
      self.begin = (tokenizer.bos_id,) if add_bos else ()
    if None in self.begin:
      raise errors.refuse(
        'config.data.add_bos',
        f'tokenizer {tokenizer.name} has no BOS to add',
        'leave data.add_bos at None, or name a bos_token in its files',
      )

  def trim(self, pieces: tuple[Piece, ...]) -> tuple[tuple[Piece, ...], bool]:
    """Removes white space after a final stop token of a completion.

    Returns:
      The pieces, and whether they end with a stop token.
    """
    # What a message ends with is content and no stop token.
    if not pieces or pieces[-1].is_content:
      return pieces, False
    text = pieces[-1].text.rstrip()
    last = Piece(text, False)
    if not self.tokenizer.ends_turn(last):
      return pieces, False
    if text != pieces[-1].text:
      self.counters['trimmed_after_eos'] += 1
    return (*pieces[:-1], last), True

  def begin_of(self, prompt: Sequence[int]) -> tuple[int, ...]:
    """Returns the ids of `begin` if the prompt begins with them, else ()."""
    size = len(self.begin)
    return self.begin if tuple(prompt[:size]) == self.begin else ()

  def with_begin(self, prompt: list[int], *, is_chat: bool) -> list[int]:
    """Returns the prompt with BOS, where the rules ask for it."""
    if self.begin and not self.begin_of(prompt):
      self.counters['bos_added_to_template'] += is_chat
      prompt = [*self.begin, *prompt]
    if prompt:
      return prompt
    # The last prompt token predicts the first of the answer: one is needed.
    known = (self.tokenizer.bos_id, self.tokenizer.eos_id)
    return [token for token in known if token is not None][:1]

  def with_eos(
    self, completions: list[list[int]], ended: tuple[bool, ...]
  ) -> list[list[int]]:
    """Returns the completions with one EOS each.

    Args:
      completions: token ids; one without any token but a stop token becomes
        empty, so that its record is dropped.
      ended: whether each ends with a stop token, from `trim`.
    """
    done = []
    for ids, is_ended in zip(completions, ended):
      if len(ids) == is_ended:  # nothing, or a stop token alone
        ids = []
      elif self.add_eos and not is_ended:
        if self.tokenizer.eos_id is None:
          self.counters['completions_without_eos'] += 1
        else:
          ids = [*ids, self.tokenizer.eos_id]
      done.append(ids)
    return done
