"""Refusals: what the knobs may be together.

Comes in: a ConfigDict and the base it must have the structure of. Goes out:
nothing, or InputError with the key, its value, what is allowed and the
nearest match. Imports no jax and, but for `check_paths`, looks at no file.
"""

import math
import os

from ml_collections.config_dict import ConfigDict

from dpo_jax import errors
from dpo_jax.config import rules as config_rules
from dpo_jax.data.sources import files, published
from dpo_jax.data.sources import source as sources
from dpo_jax.losses import catalogue as config_losses
from dpo_jax.losses import rules as loss_rules
from dpo_jax.models import adapter_spec
from dpo_jax.types import InputError

# Names of the data sets that need no file.
EMBEDDED = ('synthetic', 'synthetic_demonstrations')

# Moments' options that an optimiser does not have.
_UNUSED_OPTIM = {
  'adamw': (),
  'rmsprop': ('b1',),
  'lion': ('eps',),
  'adafactor': ('b1', 'b2', 'eps'),
}


def check(
  config: ConfigDict, base: ConfigDict, num_devices: int | None
) -> None:
  """Raises InputError at the first thing in `config` that cannot run."""
  values, known = config_rules.flatten(config), config_rules.flatten(base)
  for key in values:
    if key not in known and not key.startswith('loss.terms.'):
      raise InputError(config_rules.unknown_key(key, known))
  for key in known:
    if key not in values:
      raise errors.refuse(f'config.{key}', 'is missing', 'start from base()')
  for key, value in values.items():
    if not config_rules.rule(key).holds(value):
      raise InputError(config_rules.refusal(key, value))
  _check_losses(config)
  _check_data(config)
  _check_model(config)
  _check_adapter(config, base)
  _check_optim(config)
  _check_train(config)
  _check_sample(config.sample)
  if num_devices is not None:
    _check_mesh(config.mesh, num_devices)


def check_paths(config: ConfigDict) -> None:
  """Raises InputError where a file or folder that a key names is not there.

  Data files are looked at as far as their first bytes, names of public sets
  (`tfds:...`) are taken apart; the embedded ones and 'split' are neither.
  """
  values = config_rules.flatten(config)
  for name in (*config_rules.split_names(config.data.train), config.data.eval):
    if name.startswith(sources.TFDS):
      published.parse_name(name.removeprefix(sources.TFDS), where=name)
    elif name not in (*EMBEDDED, 'split'):
      _check_data_file(name)
  if config.tokenizer not in ('', 'byte'):
    _check_path('tokenizer', config.tokenizer, 'folder', os.path.exists)
  for key in (
    'model.init_from',
    'adapter.init_from',
    'reference.init_from',
    'data.manual_dir',
  ):
    if values[key]:
      _check_path(key, values[key], 'folder', os.path.isdir)
  if config.sample.prompts:
    _check_data_file(config.sample.prompts)
  template = config.data.chat_template
  if template and not template.replace('-', '_').isidentifier():  # no name
    _check_path('data.chat_template', template, 'file', os.path.isfile)


def _check_losses(config: ConfigDict) -> None:
  known = config_losses.read()
  for name in config.loss.terms:
    if name not in known:
      raise errors.refuse(
        f'config.loss.terms.{name}',
        'there is no such loss',
        f'{errors.did_you_mean(name, known)}losses are {", ".join(known)}',
      )
  terms = [name for name, weight in config.loss.terms.items() if weight]
  if not terms:
    raise errors.refuse(
      'config.loss.terms',
      'no loss is chosen',
      'set one, e.g. '
      f'--config.loss.terms.{"nll" if config.stage == "sft" else "sigmoid"}=1',
    )
  if config.stage == 'sft' and terms not in (['nll'], ['sft']):
    raise errors.refuse(
      'config.loss.terms',
      f"{', '.join(terms)} with stage 'sft' is not allowed",
      "use nll alone, or stage 'dpo'",
    )
  options = [
    name
    for name in config_losses.read_options()
    if config.loss[name] is not None and config.loss[name] is not False
  ]
  _check_loss_keys(config, [*terms, *options])
  _check_combination(config, terms, options)


def _check_loss_keys(config: ConfigDict, chosen: list[str]) -> None:
  """Every key of config.loss that is set is used by something chosen."""
  for key, value in config.loss.items():
    if key == 'terms' or value is None or value is False:
      continue
    users = config_losses.users(key)
    if not set(users) & set(chosen):
      raise errors.refuse(
        f'config.loss.{key}',
        f'{value!r} is used by no chosen loss ({", ".join(chosen)})',
        f'set it to None, or use {", ".join(users)}',
      )


def _check_combination(
  config: ConfigDict, terms: list[str], options: list[str]
) -> None:
  """Losses, options, their numbers and the reference fit together."""
  losses = {name: config_losses.read()[name] for name in terms}
  chosen = {name: config_losses.read_options()[name] for name in options}
  values = {
    key: value
    for key, value in config.loss.items()
    if key not in ('terms', *config_losses.switches()) and value is not None
  }
  loss_rules.check_options(losses, chosen, values)
  loss_rules.check_values(losses, chosen, values)
  _check_reference(config, [n for n in terms if 'reference' in losses[n].needs])
  loss_rules.check_reference(config.reference.mode, losses, chosen)


def _check_reference(config: ConfigDict, needing: list[str]) -> None:
  mode = config.reference.mode
  if needing and mode == 'none':
    raise errors.refuse(
      'config.reference.mode',
      f"'none' is not allowed with {needing[0]}, which needs a reference",
      'use params or cache',
    )
  if config.stage == 'sft' and mode != 'none':
    raise errors.refuse(
      'config.reference.mode',
      f"{mode!r} is not allowed with stage 'sft'",
      'use none',
    )
  if mode == 'none' and config.reference.init_from:
    raise errors.refuse(
      'config.reference.init_from',
      f"{config.reference.init_from!r} is not used with reference.mode 'none'",
      'leave it empty, or use params',
    )


def _check_data(config: ConfigDict) -> None:
  data = config.data
  names, shares = (
    config_rules.split_names(data.train),
    config_rules.split_numbers(data.proportions),
  )
  if shares and len(shares) != len(names):
    raise errors.refuse(
      'config.data.proportions',
      f'{data.proportions!r} has {len(shares)} numbers for {len(names)} '
      'sources of data.train',
      'give one each',
    )
  if 0 < data.row_length < data.max_length:
    raise errors.refuse(
      'config.data.row_length',
      f'{data.row_length} is less than data.max_length={data.max_length}',
      'use 0 (= max_length) or more',
    )
  if data.prompt_max_length >= data.max_length:
    raise errors.refuse(
      'config.data.prompt_max_length',
      f'{data.prompt_max_length} leaves no token of '
      f'data.max_length={data.max_length} to the completion',
      'use less',
    )
  if data.train_on != 'last' and config.stage != 'sft':
    raise errors.refuse(
      'config.data.train_on',
      f"{data.train_on!r} is for stage 'sft': of preferences the assistant's "
      'turns of each answer are trained',
      "use 'last'",
    )
  reserved = ('messages', 'tools', 'documents', 'add_generation_prompt')
  for name in config_rules.json_object(data.template_args):
    if name in (*reserved, 'where', 'allow_control_tokens', 'ends_turn'):
      raise errors.refuse(
        'config.data.template_args',
        f'{name!r} is not an argument to set',
        'remove it',
      )
  if data.use_token_ids and data.chat_template:
    raise errors.refuse(
      'config.data.chat_template',
      f'{data.chat_template!r} is not used with data.use_token_ids',
      'leave it empty',
    )


def _check_model(config: ConfigDict) -> None:
  model = config.model
  if bool(model.init_from) == bool(model.preset):
    problem = 'both are set' if model.preset else 'neither is set'
    raise errors.refuse(
      'config.model.init_from',
      f'{model.init_from!r} and model.preset={model.preset!r}: {problem}',
      'set one (a folder, or a preset for random weights)',
    )
  if model.init_from and model.vocab_size:
    raise errors.refuse(
      'config.model.vocab_size',
      f'{model.vocab_size} is not used with model.init_from',
      'leave it 0',
    )
  if not config.tokenizer and not model.init_from:
    raise errors.refuse(
      'config.tokenizer',
      "'' takes the tokenizer of model.init_from, which is not set",
      "use 'byte', a folder or a tokenizer.json",
    )


def _check_adapter(config: ConfigDict, base: ConfigDict) -> None:
  adapter, reference = config.adapter, config.reference
  if not adapter.rank:
    for key, value in adapter.items():
      if value != base.adapter[key]:
        raise errors.refuse(
          f'config.adapter.{key}',
          f'{value!r} is not used with adapter.rank=0',
          'set a rank, e.g. --config.adapter.rank=16',
        )
    if reference.mode == 'adapter_off':
      raise errors.refuse(
        'config.reference.mode',
        "'adapter_off' needs an adapter, and adapter.rank=0 trains all weights",
        'set a rank, e.g. --config.adapter.rank=16, or use params',
      )
    return
  adapter_spec.select(adapter.targets)
  if adapter.init_from and adapter.init != base.adapter.init:
    raise errors.refuse(
      'config.adapter.init',
      f'{adapter.init!r} is not used with adapter.init_from',
      'leave it out',
    )
  if reference.mode == 'adapter_off' and reference.init_from:
    raise errors.refuse(
      'config.reference.init_from',
      f"{reference.init_from!r} is not used with reference.mode 'adapter_off'",
      'leave it empty, or use params',
    )


def _check_optim(config: ConfigDict) -> None:
  optim, train = config.optim, config.train
  for option in _UNUSED_OPTIM[optim.name]:
    if optim[option] is not None:
      raise errors.refuse(
        f'config.optim.{option}',
        f'{optim[option]!r} is not used by {optim.name}',
        'set it to None',
      )
  if optim.warmup_steps and optim.warmup_fraction:
    raise errors.refuse(
      'config.optim.warmup_fraction',
      f'{optim.warmup_fraction} and optim.warmup_steps={optim.warmup_steps} '
      'are both set',
      'set one to 0',
    )
  if 0 < train.num_steps <= optim.warmup_steps:
    raise errors.refuse(
      'config.optim.warmup_steps',
      f'{optim.warmup_steps} is not less than '
      f'train.num_steps={train.num_steps}',
      'use less',
    )
  if optim.schedule == 'constant' and optim.final_fraction:
    raise errors.refuse(
      'config.optim.final_fraction',
      f"{optim.final_fraction} is not used with schedule 'constant'",
      'use 0, or linear or cosine',
    )


def _check_train(config: ConfigDict) -> None:
  train = config.train
  if bool(train.num_steps) == bool(train.num_epochs):
    problem = 'both are set' if train.num_steps else 'neither is set'
    raise errors.refuse(
      'config.train.num_steps',
      f'{train.num_steps} and train.num_epochs={train.num_epochs:g}: {problem}',
      'set exactly one above 0',
    )
  if train.batch_size % train.microbatches:
    raise errors.refuse(
      'config.train.microbatches',
      f'{train.microbatches} does not divide '
      f'train.batch_size={train.batch_size}',
      f'use one of {", ".join(map(str, _divisors(train.batch_size)))}',
    )
  if list(config.mesh.values()).count(-1) > 1:
    raise errors.refuse(
      'config.mesh', 'more than one size is -1', 'leave the rest to one axis'
    )


def _check_sample(sample: ConfigDict) -> None:
  unused = {'top_k': 0, 'top_p': 1.0, 'min_p': 0.0}
  for key, off in unused.items():
    if sample.temperature == 0 and sample[key] != off:
      raise errors.refuse(
        f'config.sample.{key}',
        f'{sample[key]} is not used by greedy sampling (sample.temperature=0)',
        f'use {off}, or a temperature above 0',
      )


def _check_mesh(mesh: ConfigDict, num_devices: int) -> None:
  fixed = math.prod(size for size in mesh.values() if size != -1)
  rest = -1 in mesh.values()
  if num_devices % fixed if rest else num_devices != fixed:
    sizes = ', '.join(
      f'{axis}={mesh[axis]}' for axis in ('data', 'fsdp', 'tensor')
    )
    raise errors.refuse(
      'config.mesh',
      f'{sizes} does not fit {num_devices} device(s)',
      f'use sizes whose product is {num_devices}, one of them -1 for the rest',
    )


def _divisors(number: int) -> list[int]:
  return [n for n in range(1, number + 1) if number % n == 0]


def _check_data_file(name: str) -> None:
  path = os.path.expanduser(name)
  near = errors.nearest(name, EMBEDDED)
  if near and not os.path.exists(path):
    raise errors.refuse(
      'config.data',
      f'{name!r} is no file and no data set',
      f'did you mean {near!r}?',
    )
  files.check(path)


def _check_path(key: str, name: str, kind: str, is_there) -> None:
  if is_there(name):
    return
  folder, base = os.path.split(name)
  siblings = os.listdir(folder or '.') if os.path.isdir(folder or '.') else []
  near = errors.nearest(base, siblings)
  hint = f'did you mean {os.path.join(folder, near)!r}? ' if near else ''
  raise errors.refuse(
    f'config.{key}',
    f'{name!r} is not there',
    f'{hint}give the path of a {kind}, absolute or from {os.getcwd()}',
  )
