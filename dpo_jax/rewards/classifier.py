"""A folder of a Hugging Face sequence classifier -> a reward.

Comes in: the folder of an AutoModelForSequenceClassification whose trunk is one
of our decoders: config.json, safetensors with `score.weight`, tokenizer.json.
Goes out: a Reward. Trains nothing, applies no chat template.

The score is that of `score.weight` at the last token of prompt and completion.
With one label it is the reward; with two, the log-odds of the second.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from dpo_jax import errors
from dpo_jax.data.text import tokenizer as tokenizer_lib
from dpo_jax.models import architectures, decoder, generate
from dpo_jax.rewards.registry import FLAG, Answer, Reward
from dpo_jax.storage import files, hf_checkpoint, hf_files

HEAD = 'score.weight'  # [labels, D]; transformers gives it no bias
_BATCH = 32  # texts that are read at one time
_SHORTEST = 32  # tokens; texts are padded to this or a power of two above


def load(name: str, folder: str) -> Reward:
  """Loads a classifier.

  Args:
    name: of the reward.
    folder: of the classifier.

  Raises:
    InputError: no classifier, one of another architecture, or one with more
      than two labels.
  """
  path = files.at(folder)
  config = architectures.from_hf_config(
    hf_checkpoint.read_config(path), where=str(path / 'config.json')
  )
  # The trunk alone: it has no head over the vocabulary.
  config = dataclasses.replace(config, tied=True, head_bias=False)
  head_KD = _read_head(path, config.sizes['D'])
  params = hf_checkpoint.load_params(path, config, more=(HEAD,))
  tokenizer = tokenizer_lib.load(folder)
  score = jax.jit(_make_score(decoder.make_model(config)))
  # A table of positions ends; rotations do not.
  longest = config.max_positions if config.learned_positions else None

  def score_all(answers: Sequence[Answer]) -> np.ndarray:
    texts = [_encode(tokenizer, answer.text) for answer in answers]
    scores = np.zeros(len(texts))
    for start in range(0, len(texts), _BATCH):
      part = texts[start : start + _BATCH]
      rows = _pad(part, longest, folder)
      got = np.asarray(score(params, head_KD, *rows))[: len(part)]
      scores[start : start + _BATCH] = got
    return scores

  return Reward(name, path.name, 'score', score_all)


def _read_head(folder: files.AnyPath, width: int) -> np.ndarray:
  """Reads the head, float32 [K, D], K = 1 or 2."""
  with contextlib.ExitStack() as stack:
    stored = hf_files.Files(folder, stack)
    if HEAD not in stored.names:
      raise errors.refuse(
        FLAG,
        f'{str(folder)!r} has no tensor {HEAD}',
        'give the folder of an AutoModelForSequenceClassification of a decoder',
      )
    shape, _ = stored.describe(HEAD)
    if shape not in ((1, width), (2, width)):
      raise errors.refuse(
        FLAG,
        f'{HEAD} of {str(folder)!r} has shape {shape}',
        f'use a classifier with one or two labels, of width {width}',
      )
    everything = (slice(None), slice(None))
    return np.asarray(stored.read(HEAD, everything), np.float32)


def _make_score(model) -> Callable:
  """Makes `score(params, head_KD, tokens_RL, lengths) -> [R]`."""

  def score(params, head_KD, tokens_RL, lengths):
    slots_RL = jnp.broadcast_to(jnp.arange(tokens_RL.shape[1]), tokens_RL.shape)
    is_token_RL = slots_RL < lengths[:, None]
    rows = generate.rows_of_texts(tokens_RL, slots_RL, is_token_RL)
    hidden_RLD, _ = model.hidden(params, rows)
    last = jnp.maximum(lengths - 1, 0)[:, None, None]
    last_RD = jnp.take_along_axis(hidden_RLD, last, axis=1)[:, 0]
    scores_RK = last_RD.astype(jnp.float32) @ head_KD.T
    # log p_1 - log p_0 of a softmax over two labels.
    return scores_RK[:, -1] - (scores_RK[:, 0] if len(head_KD) == 2 else 0.0)

  return score


def _encode(tokenizer, text: str) -> list[int]:
  """The ids of a text, begun as the classifier's tokenizer does."""
  return [*tokenizer.begin, *tokenizer.encode(text)]


def _pad(texts, longest: int | None, folder: str):
  """(tokens [_BATCH, L], lengths), L a power of two: few compiles."""
  most = max(map(len, texts))
  if longest and most > longest:
    raise errors.refuse(
      FLAG,
      f'a text has {most} tokens, {folder!r} takes {longest}',
      'shorten sample.max_new_tokens',
    )
  size = max(_SHORTEST, 1 << (most - 1).bit_length())
  tokens = np.zeros((_BATCH, size), np.int32)
  lengths = np.zeros(_BATCH, np.int32)
  for row, text in enumerate(texts):
    tokens[row, : len(text)], lengths[row] = text, len(text)
  return tokens, lengths
