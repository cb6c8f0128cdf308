"""run or folder -> a policy for notebooks: parameters, `score` and `sample`.

Comes in: a run directory or a Hugging Face folder. Goes out: a Policy, whose
methods take texts or messages. Reads no training data, trains nothing, writes
nothing.

    policy = dpo_jax.open_policy('runs/mine')
    scores = policy.score('Once upon a time', [' a cat sat.', ' no.'])
    scores.logps - reference.score(...).logps  # log-ratios
"""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections.config_dict import ConfigDict

from dpo_jax import config as config_lib
from dpo_jax import errors, scoring, sharding
from dpo_jax.config import knobs, rules
from dpo_jax.data.batches import length_table, pipeline
from dpo_jax.data.sources import conversations
from dpo_jax.data.text import encode
from dpo_jax.data.text import tokenizer as tokenizer_lib
from dpo_jax.data.text.encoders import Tokenizer
from dpo_jax.models import decoder
from dpo_jax.models.decoder_config import DecoderConfig
from dpo_jax.run import datasets, numerics, sample
from dpo_jax.storage import files, initial_weights, run_dir
from dpo_jax.types import Comparison, EncodedRecord, Params, PreferenceRecord

_BATCH = 32  # texts that are scored at once, at most
_SHORTEST = 64  # slots of a row, or twice that, or ...
# What a run's config says of how its texts become tokens.
_TEXT_KEYS = (
  'data.add_bos',
  'data.add_eos',
  'data.allow_control_tokens',
  'data.chat_template',
  'data.template_args',
  'data.template_date',
  'data.use_chat_template',
  'precision.compute',
  'precision.head_chunk',
  'tokenizer',
)


class Scores(NamedTuple):
  """Log-probabilities of n completions."""

  logps: np.ndarray  # float32 [n], sum over the completion's tokens, nats
  num_tokens: np.ndarray  # int32 [n], tokens in that sum
  prompts: tuple[np.ndarray, ...]  # int32, token ids of each prompt
  completions: tuple[np.ndarray, ...]  # int32, of each completion, with its EOS


class _Inputs(NamedTuple):
  """The part of inputs.Inputs that sampling reads."""

  tokenizer: Tokenizer
  model: DecoderConfig


class Policy:
  """A language model with its tokenizer and chat template.

  Attributes:
    params: pytree of float32 parameters on the mesh; may be replaced by
      another of the same shapes.
    config: how texts become tokens, and the defaults of `sample`.
    inputs: its tokenizer and model shape.
    model: decoder.LanguageModel.
    mesh: of all devices.
  """

  def __init__(
    self, params: Params, config: ConfigDict, inputs: _Inputs, model, mesh
  ):
    """Called by open_policy."""
    self.params = params
    self.config = config
    self.inputs = inputs
    self.model = model
    self.mesh = mesh
    chunk = numerics.head_chunk(config)
    self._score = jax.jit(
      scoring.make_score(model, chunk=chunk, mesh=mesh),
      static_argnums=2,
      out_shardings=sharding.replicated(mesh),
    )
    self._generate = {}  # new tokens -> compiled sampling

  @property
  def tokenizer(self) -> Tokenizer:
    """The model's tokenizer."""
    return self.inputs.tokenizer

  def score(self, prompts: Any, completions: Sequence[Any]) -> Scores:
    """Log-probabilities of completions after their prompts.

    Texts are encoded as in training, and none is cut. In a conversation the
    last turn counts, its end included.

    Args:
      prompts: texts or lists of messages, one per completion; or a single
        text or list of messages for all of them.
      completions: texts, messages, or lists of messages.

    Raises:
      InputError: a prompt or a completion cannot be encoded; names it.
    """
    records = self._encode(*_paired(prompts, completions))
    table = length_table.make_table(records)
    longest = length_table.longest_text(table, np.arange(len(records)))
    self._check_positions(longest)
    plan = pipeline.make_plan(
      table,
      seed=0,
      batch_size=min(_BATCH, _power_of_two(len(records))),
      row_length=max(_SHORTEST, _power_of_two(longest)),
      layout='padded',
      row_multiple=sharding.row_multiple(self.mesh),
      max_shapes=1,
      shuffle=False,
    )
    logps = np.zeros(len(records), np.float32)
    num_tokens = np.zeros(len(records), np.int32)
    for t in range(plan.steps_per_epoch):
      host = plan.batch(t, records)
      batch = jax.device_put(host, sharding.batch_shardings(self.mesh, host))
      rows = jax.tree.map(lambda field: field[0], batch.rows)
      out = self._score(self.params, rows, plan.num_completions)
      index = plan.completion_index(t)
      kept = index >= 0
      logps[index[kept]] = np.asarray(out.logps)[kept]
      num_tokens[index[kept]] = np.asarray(out.num_tokens)[kept]
    return Scores(
      logps,
      num_tokens,
      tuple(record.prompt for record in records),
      tuple(record.completions[0] for record in records),
    )

  def sample(self, prompts: Any, **options: Any) -> list[dict[str, Any]]:
    """Draws completions of prompts.

    Args:
      prompts: texts or lists of messages, or a single one.
      **options: keys of config.sample, such as num_samples, max_new_tokens,
        temperature and seed.

    Returns:
      A dict per sample, in order of the prompts, with the fields that
      --mode=sample writes.

    Raises:
      InputError: no such option, a value that it does not take, or a prompt
        that cannot be encoded.
    """
    config = self.config.copy_and_resolve_references()
    for name, value in options.items():
      knob = knobs.find(f'sample.{name}')
      if not knob.rule.holds(value):
        raise rules.refused(f'sample.{name}', value, knob.rule)
      config.sample[name] = value
    rows = [
      (f'prompts[{i}]', {'prompt': prompt})
      for i, prompt in enumerate([prompts] if _is_one(prompts) else prompts)
    ]
    ids = datasets.encode_prompts(rows, config, self.tokenizer)
    opened = _Opened(config, self.inputs, self.model, self.mesh, self._score)
    sample.check_lengths(opened, ids)
    sampler = sample.make_sampler(opened)
    # Compiled for a number of tokens; every other option is traced.
    size = config.sample.max_new_tokens
    self._generate.setdefault(size, sampler.generate)
    sampler = sampler._replace(generate=self._generate[size])
    return sample.sample(sampler, self.params, ids, config.sample.num_samples)

  def _encode(self, prompts, completions) -> list[EncodedRecord]:
    """Records of one completion each."""
    records = [
      _record(prompt, completion, f'completions[{i}]')
      for i, (prompt, completion) in enumerate(zip(prompts, completions))
    ]
    options = datasets.encode_options(self.config, self.tokenizer, (1.0,))
    options = options._replace(
      max_length=2**30,
      prompt_max_length=None,
      stage='sft',
      train_on='last',
      drop_duplicates=False,
      strict=True,
    )
    return encode.encode_all(records, self.tokenizer, options)[0]

  def _check_positions(self, longest: int) -> None:
    model = self.inputs.model
    if model.learned_positions and longest - 1 > model.max_positions:
      raise errors.refuse(
        'completions',
        f'a prompt and its completion have {longest} tokens, the model '
        f'{model.max_positions} positions',
        'give shorter texts',
      )


class _Opened(NamedTuple):
  """The part of a Job that sampling reads."""

  config: ConfigDict
  inputs: _Inputs
  model: Any
  mesh: jax.sharding.Mesh
  score: Callable[..., Any]  # jitted (params, rows, C) -> CompletionScores


def open_policy(
  path: str | os.PathLike, *, tokenizer: str = '', chat_template: str = ''
) -> Policy:
  """Opens the newest policy of a run, or the model of a folder.

  Args:
    path: run directory, whose tokenizer, chat template and precision are
      used; or a Hugging Face folder.
    tokenizer: as config.tokenizer, in place of that of `path`.
    chat_template: as config.data.chat_template, in place of that of `path`.

  Raises:
    InputError: the folder holds no policy that can be read.
  """
  path = os.fspath(path)
  if not files.at(path).is_dir():
    raise errors.refuse(path, 'no such folder', 'name a run or a model folder')
  config = _config_of(path)
  config.tokenizer = tokenizer or config.tokenizer
  config.data.chat_template = chat_template or config.data.chat_template
  loaded = tokenizer_lib.load(
    config.tokenizer or initial_weights.tokenizer_of(path)
  )
  shape = initial_weights.read_config(path)
  mesh = sharding.make_mesh(**config.mesh)
  model = decoder.make_model(
    shape,
    compute_dtype=numerics.compute_dtype(config),
    mesh=mesh if mesh.size > 1 else None,
  )
  abstract = jax.eval_shape(model.init, jax.random.key(0))
  shardings = sharding.param_shardings(mesh, model.logical_axes, abstract)
  placed = sharding.placed(shardings, abstract)
  params = initial_weights.load(path, shape, placed.shardings, placed.abstract)
  return Policy(params, config, _Inputs(loaded, shape), model, mesh)


def _config_of(path: str) -> ConfigDict:
  """The default config, with what a run says of its texts."""
  config = config_lib.base()
  if not (files.at(path) / 'config.json').is_file():
    return config
  values = files.flatten(run_dir.RunDir(path).config())
  # A Hugging Face folder has a config.json too, with none of these keys.
  for key in _TEXT_KEYS:
    if values.get(key) not in (None, ''):
      config_lib.override(config, key, values[key])
  return config


def _paired(prompts: Any, completions: Sequence[Any]) -> tuple[list, list]:
  """One prompt per completion."""
  if isinstance(completions, str | Mapping) or not len(completions):
    raise errors.refuse(
      'completions', errors.show(completions), 'give a list of one or more'
    )
  if _is_one(prompts):
    prompts = [prompts] * len(completions)
  if len(prompts) != len(completions):
    raise errors.refuse(
      'completions',
      f'{len(completions)} for {len(prompts)} prompts',
      'give one per prompt, or a single prompt',
    )
  return list(prompts), list(completions)


def _is_one(prompts: Any) -> bool:
  """Whether it is one text or conversation, not a list of them."""
  if isinstance(prompts, str):
    return True
  return len(prompts) > 0 and isinstance(prompts[0], Mapping)


def _record(prompt, completion, where: str) -> PreferenceRecord:
  """A demonstration; an answer of a conversation may be a text."""
  one = (Comparison(0, 0),)
  if isinstance(prompt, str) and isinstance(completion, str):
    return PreferenceRecord(prompt, (completion,), one, where=where)
  if isinstance(completion, str):
    completion = [{'role': 'assistant', 'content': completion}]
  elif isinstance(completion, Mapping):
    completion = [completion]
  if isinstance(prompt, str):
    prompt = [{'role': 'user', 'content': prompt}]
  return PreferenceRecord(
    conversations.messages(prompt, 'prompt', where),
    (conversations.messages(completion, 'completion', where),),
    one,
    where=where,
  )


def _power_of_two(least: int) -> int:
  """The least power of two from `least`."""
  return 1 << max(0, least - 1).bit_length()
