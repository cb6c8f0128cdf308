"""The nouns: every value that travels between two files of the package.

Comes in: nothing. Goes out: plain NamedTuples of arrays (jax or numpy) and the
one exception that bad input raises. Imports no jax, so config can read it.

Dimension key, used in names of rank 2 and up:
  R rows, L row length, C completions of a batch, P comparisons of a batch,
  M microbatches, V vocabulary, D model width, H heads, G key/value heads,
  K head size, F hidden width of the MLP, E experts.
"""

from typing import Any, NamedTuple

# Plain aliases: a type from jax would make every reader import jax.
Array = Any  # jax.Array or numpy.ndarray
Params = Any  # pytree of arrays

MESH_AXES = ('data', 'fsdp', 'tensor')  # of every mesh, in this order
ROW_AXES = ('data', 'fsdp')  # those that split the rows of a batch


class InputError(ValueError):
  """Bad input: one line for the user, then exit code 2. See errors.refuse.

  Form: `path:line: problem; fix: ...`, or the config key in place of
  path:line, with the value, the allowed values and the nearest match.
  """

  exit_code = 2


class StorageError(InputError):
  """A disk that takes no more, or a folder that is gone: exit code 1."""

  exit_code = 1


class Comparison(NamedTuple):
  """One human judgement: completion `winner` is preferred to `loser`."""

  winner: int  # index into the record's completions
  loser: int  # another index; equal to winner for a demonstration (SFT)
  weight: float = 1.0  # weight in the batch's mean
  margin: float = 0.0  # how much better the winner is, in the data's unit


class PreferenceRecord(NamedTuple):
  """A prompt, K >= 1 completions, and the judgements of them.

  The prompt and the completions have one form: `str` (raw text), a tuple of
  messages (`{'role': ..., 'content': ...}`), or a tuple of token ids.
  """

  prompt: Any
  completions: tuple[Any, ...]
  comparisons: tuple[Comparison, ...] = ()
  labels: tuple[bool, ...] | None = None  # per completion: desirable or not
  scores: tuple[float, ...] | None = None  # per completion: reward or rating
  where: str = ''  # 'path:line' or 'source[index]', for error messages
  tools: tuple[dict, ...] | None = None  # function schemas, for the template
  # The prompt's last message is an assistant's turn that the answers continue.
  continues: bool = False
  # Per completion: share of the reference's own answers that score no better.
  quantiles: tuple[float, ...] | None = None


class EncodedRecord(NamedTuple):
  """A record as token ids; completions include their EOS where it belongs."""

  # int32 [T], T >= 1: the last prompt token predicts the first answer token.
  prompt: Array
  completions: tuple[Array, ...]  # int32 [n_k], n_k >= 1 each
  comparisons: tuple[Comparison, ...]
  labels: tuple[bool, ...] | None = None
  scores: tuple[float, ...] | None = None
  uid: str = ''  # 16 hex digits: sha256 of tokens, comparisons, labels, scores
  quantiles: tuple[float, ...] | None = None  # as in PreferenceRecord
  # bool [n_k] each: which tokens are targets; None = all. The other tokens (a
  # user's turn inside the answer) are input only.
  trained: tuple[Array, ...] | None = None


class Rows(NamedTuple):
  """The model's input: int32 arrays [R, L], or [M, R, L] in a batch.

  A query sees a key when both have the same prompt_id (> 0), the key is not
  later in the row, and the key's branch is 0 or the query's own.
  """

  tokens: Array  # input token ids
  positions: Array  # position in the prompt + completion text, from 0
  prompt_id: Array  # which prompt of the row, from 1; 0 = padding
  branch: Array  # 0 = prompt trunk, k = k-th completion placed in the row
  targets: Array  # token to predict here; 0 where completion_id is -1
  completion_id: Array  # completion in [0, C) that owns the target; -1 = none


class RouterSums(NamedTuple):
  """Router statistics: float32 sums over all positions except padding.

  One row per layer (N). Sums rather than means, so that microbatches add up.
  """

  chosen_NE: Array  # how often each expert was chosen; no gradient
  probs_NE: Array  # sum of the router's probabilities
  entropy_N: Array  # sum of the router's entropy, nats; no gradient
  tokens_N: Array  # number of positions


class CompletionScores(NamedTuple):
  """A model's scores of completions, all that losses see: float32 arrays [C].

  An absent completion (padding) has num_tokens 0 and logps 0.
  """

  logps: Array  # sum of log-probabilities over the completion's tokens, nats
  num_tokens: Array  # number of tokens in that sum
  entropy: Array | None = None  # sum over tokens of the entropy, nats
  # Present only if a loss or an option needs them:
  log_sum_sq_probs: Array | None = None  # sum of log sum_v p_v^2; no gradient
  kl: Array | None = None  # sum of KL(reference, policy) over the vocabulary
  heads_2P: Array | None = None  # logps of the first tokens, see Heads
  # Sums of log p - log pi, p the policy with its logits one step further away
  # from the reference's, or toward them; no gradient
  away: Array | None = None
  toward: Array | None = None
  # Present only for models with experts; counts prompt positions too:
  router: RouterSums | None = None


class Comparisons(NamedTuple):
  """The comparisons of a batch, arrays [P]; weight 0 = padding."""

  winner: Array  # int32, index into [C]
  loser: Array  # int32, index into [C]
  weight: Array  # float32
  margin: Array  # float32


class Heads(NamedTuple):
  """The first tokens of each side, which get a sum of their own; arrays [P]."""

  winner: Array  # int32, index into [C]
  loser: Array  # int32, index into [C]
  num_tokens: Array  # number of first tokens, equal for both sides


class Batch(NamedTuple):
  """The data of one update or of one evaluation step.

  Only `rows` is split into M microbatches; the completions of a prompt lie in
  one of them. The other fields belong to the whole batch.
  """

  rows: Rows  # [M, R, L]
  comparisons: Comparisons  # [P]
  labels: Array  # int32 [C]: 1 desirable, 0 undesirable, -1 unknown
  scores: Array  # float32 [C]: score given by the data; 0 = none
  prompt_index: Array  # int32 [C]: index of its prompt; -1 = padding
  reference: CompletionScores | None = None  # precomputed, [C]
  # int32 [C]: 1 = another prompt's answer, scored after this prompt for KTO's
  # baseline; its label is -1 and its score 0.
  mismatched: Array | None = None
  # float32 [C]: weight of its prompt as a list of completions; None = the mean
  # weight of the prompt's comparisons, or 1.
  list_weight: Array | None = None
  quantiles: Array | None = None  # float32 [C]: see PreferenceRecord; 0 = none


class Guard(NamedTuple):
  """What an update says of its own numbers."""

  is_bad: Array  # bool: it is left out, see train_step
  second_moment: Array  # float32: the largest one of the optimizer
  num_tokens: Array  # float32: tokens of completions in its loss


class Head(NamedTuple):
  """The output projection: logits = softcap(scale * h W^T + bias)."""

  weight_VD: Array
  bias: Array | None = None  # [V]
  scale: float = 1.0
  softcap: float | None = None


class Adapted(NamedTuple):
  """Frozen weights with an adapter: given to a model in place of weights."""

  base: Params
  adapter: Params | None  # see models/adapters.py; None = off
  scale: Array | float = 1.0  # factor of the adapter's output


class Frozen(NamedTuple):
  """The reference argument of every step: weights that are read, never trained.

  The reference model is `weights`, or `base` if `weights` is None, with
  `adapter` on it unless that is None. All fields are None if no step reads a
  reference model: its scores come with the batch, or the losses need none.
  """

  base: Params | None = None  # under the trained adapter; None = no adapter
  scale: Array | None = (
    None  # factor of any adapter's output; None = no adapter
  )
  weights: Params | None = None  # separate weights of the reference
  adapter: Params | None = None  # on the reference; None = off

  def policy(self, params: Params) -> Params | Adapted:
    """Returns what a model takes for the policy with these parameters."""
    if self.base is None:
      return params
    return Adapted(self.base, params, self.scale)

  def reference(self) -> Params | Adapted | None:
    """Returns what a model takes for the reference; None if there is none."""
    weights = self.base if self.weights is None else self.weights
    if self.adapter is None:
      return weights
    return Adapted(weights, self.adapter, self.scale)


class TrainState(NamedTuple):
  """The training state, saved in full; every leaf is an array."""

  step: Array  # int32, number of updates done
  params: Params  # trainable parameters, float32
  opt_state: Params  # the optimizer's moments
  loss_state: Params  # running means, for the losses that keep one
  # uint32 [2], raw data of a PRNG key, so that a checkpoint holds plain arrays.
  # The keys of a step derive from it.
  key: Array
  skipped: Array = 0  # int32, updates that the guard of train_step left out
