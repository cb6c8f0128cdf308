"""Choices: every knob of a run, once, and how experiment files are read.

Comes in: an experiment `path.py[:arg]` and overrides. Goes out: one locked,
checked ConfigDict. Does not import jax: a bad config is refused in well under
two seconds, before any device is touched. Below config, train and evaluate
nothing takes a ConfigDict, only plain arguments.
"""

import types
from collections.abc import Iterable
from typing import Any

from absl import flags
from ml_collections import config_dict, config_flags
from ml_collections.config_dict import ConfigDict

from dpo_jax import errors
from dpo_jax.config import check as config_check
from dpo_jax.config import experiment_files
from dpo_jax.config import rules as config_rules
from dpo_jax.losses import catalogue as config_losses
from dpo_jax.types import InputError


def base() -> ConfigDict:
  """Every knob once, in data-flow order; locked, but for loss.terms.

  Trailing comments: unit or choices, then the reader. A path or name of ''
  and a None mean what their comment says; 0 means "not set" where it does.
  """
  config = ConfigDict()
  config.stage = 'dpo'  # sft, dpo; train
  config.seed = 0  # data order, initial weights; data.pipeline, train
  config.data = _data()
  config.tokenizer = ''  # folder, file, 'byte'; '' = of model.init_from
  config.model = _model()
  config.adapter = _adapter()
  config.reference = _reference()
  config.loss = _loss()
  config.optim = _optim()
  config.train = _train()
  config.eval = _eval()
  config.sample = _sample()
  config.precision = _precision()
  config.mesh = _mesh()
  config.lock()
  config.loss.terms.unlock()
  return config


def load(
  experiment: str, overrides: Iterable[tuple[str, Any]] = ()
) -> ConfigDict:
  """Reads an experiment file and applies overrides.

  Args:
    experiment: `path.py` or `path.py:arg`; the file has `get_config(arg)`.
    overrides: (dotted key, value) in order; a value that is text is read as
      the key's type, as from a command line.

  Returns:
    A locked ConfigDict, not yet validated; loss.terms holds the terms whose
    weight is not 0.

  Raises:
    InputError: no such file or key, a broken file, a value of another type.
  """
  path, colon, arg = experiment.partition(':')
  config = experiment_files.get_config(path, arg if colon else '')
  # Every loss can be named on the command line, whatever the file chose.
  terms = dict.fromkeys(config_losses.read(), 0.0)
  for name, weight in config.loss.terms.items():
    terms[name] = float(weight) if type(weight) is int else weight
  with config.unlocked():
    config.loss.terms = ConfigDict(terms)
  for key, value in overrides:
    override(config, key, value)
  with config.unlocked():
    config.loss.terms = ConfigDict(loss_terms(config))
  return config.lock()


def override(config: ConfigDict, key: str, value: Any) -> None:
  """Sets one dotted key; InputError for an unknown key or a wrong type."""
  known = config_rules.flatten(config)
  if key not in known:
    raise InputError(config_rules.unknown_key(key, known))
  if value == 'None' and config_rules.rule(key).holds(None):
    value = None
  if not isinstance(value, str):
    try:
      config.update_from_flattened_dict({key: value})
    except TypeError as error:
      raise InputError(config_rules.refusal(key, value)) from error
    return
  # config_flags reads the text by the field's type and sets the field.
  command = ['', f'--config.{key}={value}']
  flag_values = flags.FlagValues()
  try:
    config_flags.DEFINE_config_dict(
      'config', config, flag_values=flag_values, sys_argv=command
    )
    flag_values(command)
  except (flags.Error, TypeError, ValueError) as error:
    raise InputError(config_rules.refusal(key, value)) from error


def validate(config: ConfigDict, num_devices: int | None = None) -> None:
  """Checks every value and combination; looks at no file and no device.

  Args:
    config: of base()'s structure.
    num_devices: how many the mesh must fit; None = not known yet.

  Raises:
    InputError: one line with the key, the value and what is allowed.
  """
  config_check.check(config, base(), num_devices)


def parse_arg(arg: str, **defaults: Any) -> types.SimpleNamespace:
  """Reads an experiment's argument string, as in `loss=ipo,runlocal`.

  Args:
    arg: comma-separated `name=value`; a bare `name` switches a bool on.
    **defaults: name -> default; bool, int, float or str, and so is the value.

  Returns:
    A namespace with a field for every default.

  Raises:
    InputError: unknown or malformed argument.
  """
  values = dict(defaults)
  for part in filter(None, arg.split(',')):
    name, equals, text = part.partition('=')
    if name not in defaults:
      hint = errors.did_you_mean(name, defaults)
      raise errors.refuse(
        f'config argument {part!r}',
        f'this experiment has no {name!r}',
        f'{hint}arguments: {", ".join(defaults)}',
      )
    values[name] = experiment_files.parse_value(
      part, text if equals else None, defaults[name]
    )
  return types.SimpleNamespace(**values)


def shrink(config: ConfigDict) -> None:
  """What `runlocal` means: two steps that run anywhere, in seconds.

  Synthetic data, byte tokens, random weights; loss, optimiser and stage stay.
  """
  config.data.train = 'synthetic'
  config.data.eval = 'split'
  config.data.eval_pairs = 16
  config.data.use_token_ids = False
  config.data.max_length = 128
  config.data.prompt_max_length = 0
  config.data.row_length = 0
  config.data.max_shapes = 1
  config.tokenizer = 'byte'
  config.model.init_from = ''
  config.model.preset = 'tiny'
  config.optim.warmup_steps = 0
  config.train.num_steps = 2
  config.train.num_epochs = 0.0
  config.train.batch_size = 8


def source_names(value: str | tuple[str, ...]) -> tuple[str, ...]:
  """Names in data.train: a tuple, or one text with commas between them."""
  return config_rules.split_names(value)


def proportions(config: ConfigDict) -> tuple[float, ...]:
  """How many times each source of data.train is taken; 1 if not given."""
  given = config_rules.split_numbers(config.data.proportions)
  return given or (1.0,) * len(source_names(config.data.train))


def loss_terms(config: ConfigDict) -> dict[str, float]:
  """{loss: weight} of the terms whose weight is not 0."""
  return {k: v for k, v in config.loss.terms.items() if v != 0}


def loss_hyper(config: ConfigDict) -> dict[str, float]:
  """The losses' traced hyper-parameters that the config sets."""
  return {
    key: float(config.loss[key])
    for key in config_losses.hyper_names()
    if config.loss[key] is not None
  }


def loss_static(config: ConfigDict) -> dict[str, Any]:
  """The losses' static choices that the config sets."""
  return {
    key: config.loss[key]
    for key in config_losses.static_choices()
    if config.loss[key] is not None
  }


def loss_options(config: ConfigDict) -> tuple[str, ...]:
  """The options that are on: those whose own key is set, and not to False."""
  return tuple(
    name
    for name in config_losses.read_options()
    if config.loss[name] is not None and config.loss[name] is not False
  )


def _data() -> ConfigDict:
  data = ConfigDict()
  data.train = _text_or_tuple()  # 'a,b' or ('a', 'b'): names, files; sources
  data.proportions = _text_or_tuple()  # '1,0.5' times; '' = 1 each; mixture
  data.eval = 'split'  # a name, a file, or 'split' = off train; train
  data.eval_pairs = 256  # comparisons held out by 'split'; split
  data.manual_dir = ''  # folder of files fetched by hand; sources
  data.cache_dir = ''  # folder of encoded data; '' = WORKDIR/cache; train
  data.row_format = 'auto'  # auto or one of records.FORMATS; records
  data.use_token_ids = False  # take *_ids, if there, as they are; sources
  data.chat_template = ''  # file or name; '' = the tokenizer's; templates
  data.use_chat_template = 'auto'  # auto = on messages, always; encode
  data.template_args = ''  # JSON object, '{"enable_thinking": false}'; chat
  data.train_on = 'last'  # turn; all_assistant, generation (sft); chat
  data.allow_control_tokens = False  # '<|x|>' in text is a token; encode
  data.add_bos = config_dict.placeholder(bool)  # None: the tokenizer's; encode
  data.add_eos = True  # end each completion with EOS; encode
  data.max_length = 512  # tokens of prompt + completion; encode
  data.prompt_max_length = 0  # tokens; 0 = max_length - 1; encode
  data.truncation = 'keep_prompt_end'  # drop, keep_completion_start; encode
  data.drop_duplicates = True  # of the whole record; encode
  data.strict = False  # refuse unusable rows, not drop them; encode
  data.layout = 'shared'  # shared, packed, padded; rows
  data.row_length = 0  # tokens a row; 0 = max_length; rows
  data.max_shapes = 4  # compiled row counts an epoch; pipeline
  return data


def _model() -> ConfigDict:
  model = ConfigDict()
  model.init_from = ''  # Hugging Face folder or a run's; train
  model.preset = ''  # random weights, one of presets; '' = init_from
  model.vocab_size = 0  # tokens; 0 = the tokenizer's (preset only)
  model.allow_larger_vocab = False  # rows that are no token; inputs
  model.router_aux_coef = config_dict.placeholder(float)  # None = the model's
  model.remat = 'none'  # none, full, dots; decoder
  model.attention_block = 128  # queries a block; attention
  return model


def _adapter() -> ConfigDict:
  adapter = ConfigDict()
  adapter.rank = 0  # of LoRA's factors; 0 = all weights are trained; adapters
  adapter.alpha = 16.0  # strength: A B counts alpha / rank times; adapters
  adapter.rslora = False  # alpha / sqrt(rank) times; adapters
  adapter.targets = ''  # patterns 'query,mlp'; '' = all linear; adapter_spec
  adapter.init = 'b_zero'  # b_zero, a_zero, the other is random; adapters
  adapter.init_from = ''  # PEFT folder, in place of init; peft_checkpoint
  adapter.base = 'float32'  # frozen kernels: float32, int8, nf4; quantized
  adapter.export = 'merged'  # merged, peft; --mode=export
  return adapter


def _reference() -> ConfigDict:
  reference = ConfigDict()
  reference.mode = 'params'  # params, adapter_off, cache, none; train
  reference.init_from = ''  # folder or run; '' = the policy's first weights
  return reference


def _loss() -> ConfigDict:
  loss = ConfigDict()
  loss.terms = ConfigDict()  # loss name -> weight; losses.objective
  # Each registered loss's own keywords; None = that loss's default.
  for key in config_losses.hyper_names():
    loss[key] = config_dict.placeholder(float)
  for key, choices in config_losses.static_choices().items():
    loss[key] = config_dict.placeholder(type(choices[0]))
  for key in config_losses.switches():
    loss[key] = config_dict.placeholder(bool)
  return loss


def _optim() -> ConfigDict:
  optim = ConfigDict()
  optim.name = 'adamw'  # adamw, rmsprop, lion, adafactor; optim
  optim.learning_rate = 1e-6  # at the end of the warm-up; train_step
  optim.schedule = 'linear'  # after it: constant, linear, cosine; optim
  optim.warmup_steps = 0  # updates; optim
  optim.warmup_fraction = 0.0  # of all updates, in place of warmup_steps
  optim.final_fraction = 0.0  # of the learning rate, at the end; optim
  optim.weight_decay = 0.0  # decoupled, times the learning rate; optim
  optim.b1 = config_dict.placeholder(float)  # None = optim's; adamw, lion
  optim.b2 = config_dict.placeholder(float)  # likewise, and rmsprop's decay
  optim.eps = config_dict.placeholder(float)  # likewise; adamw, rmsprop
  optim.clip_norm = 0.0  # global norm; 0 = no clipping; optim
  return optim


def _train() -> ConfigDict:
  train = ConfigDict()
  train.num_steps = 0  # updates; this or num_epochs, the other 0; train
  train.num_epochs = 0.0  # passes over data.train; train
  train.batch_size = 32  # prompts an update, with all comparisons; pipeline
  train.microbatches = 1  # parts an update is accumulated over; pipeline
  train.eval_every = 0  # updates; 0 = only before the first, after the last
  train.save_every = 0  # updates; 0 = only after the last; train
  train.keep_checkpoints = 2  # newest ones kept; storage.checkpoints
  return train


def _eval() -> ConfigDict:
  evaluation = ConfigDict()
  evaluation.batch_size = 32  # prompts a step; evaluate
  evaluation.max_comparisons = 0  # 0 = all; evaluate
  evaluation.num_samples = 0  # held-out prompts sampled at each; train
  return evaluation


def _sample() -> ConfigDict:
  sample = ConfigDict()
  sample.prompts = ''  # file of prompts; '' = the held-out ones; inputs
  sample.num_prompts = 0  # the first ones; 0 = all; verbs
  sample.num_samples = 1  # of each prompt; sample
  sample.max_new_tokens = 128  # tokens; models.generate
  sample.batch_size = 64  # samples a batch; sample
  sample.seed = 0  # with a sample's number, decides its text; sample
  sample.temperature = 1.0  # 0 = greedy; models.generate
  sample.top_k = 0  # tokens kept; 0 = all; models.generate
  sample.top_p = 1.0  # probability kept, after top_k; models.generate
  sample.min_p = 0.0  # least probability, times the highest; generate
  sample.stop = _text_or_tuple()  # 'a,b' further stop tokens; sample
  return sample


def _precision() -> ConfigDict:
  precision = ConfigDict()
  precision.compute = 'auto'  # float32, bfloat16; auto = float32 on CPU only
  precision.head_chunk = 1024  # positions a chunk of the LM head; scoring
  return precision


def _mesh() -> ConfigDict:
  mesh = ConfigDict()
  mesh.data = -1  # copies of the model; -1 = the rest; sharding
  mesh.fsdp = 1  # parts the parameters are split in; sharding
  mesh.tensor = 1  # parts that heads, MLP, vocabulary are split in; sharding
  return mesh


def _text_or_tuple() -> config_dict.FieldReference:
  return config_dict.FieldReference('', field_type=object)
