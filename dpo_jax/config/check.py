"""config -> nothing, or the refusal of what cannot run together.

Comes in: a ConfigDict. Goes out: nothing, or InputError with the key, its
value, what is allowed and the nearest match. Imports no jax at import time and
looks at no file: see paths.py.
"""

from collections.abc import Mapping

from ml_collections.config_dict import ConfigDict

from dpo_jax import errors
from dpo_jax.config import chosen, knobs, rules
from dpo_jax.data.batches import limits
from dpo_jax.data.sources import foreign, synthetic
from dpo_jax.data.sources import source as sources
from dpo_jax.losses import catalogue
from dpo_jax.losses import rules as loss_rules
from dpo_jax.models import adapter_spec


def validate(config: ConfigDict, num_devices: int | None = None) -> None:
  """Checks every value and combination; looks at no file and no device.

  Args:
    config: of base()'s structure.
    num_devices: the number that the mesh must fit; None = not known yet.

  Raises:
    InputError: one line with the key, the value and what is allowed.
  """
  values, known = rules.flatten(config), knobs.flat()
  for key in values:
    knobs.find(key)  # refuses a key that no knob has
  for key in known:
    if key not in values:
      raise errors.refuse(f'config.{key}', 'is missing', 'start from base()')
  for key, value in values.items():
    rule = knobs.find(key).rule
    if not rule.holds(value):
      raise rules.refused(key, value, rule)
  # Every value has its type now; the checks of combinations rely on it.
  check_losses(config)
  _check_reference(config)
  _check_data(config)
  _check_model(config)
  _check_adapter(config)
  _check_optim(config)
  _check_train(config)
  _check_sample(config.sample)
  if num_devices is not None:
    _check_mesh(config.mesh, num_devices)


def check_losses(config: ConfigDict) -> None:
  """Refuses losses that are unknown, and keys that none of them can use."""
  known = catalogue.read()
  for name in config.loss.terms:
    if name not in known:
      raise loss_rules.unknown_loss(name, known)
  terms = list(chosen.loss_terms(config))
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
  options = chosen.loss_options(config)
  _check_loss_keys(config, (*terms, *options))
  losses = {name: known[name] for name in terms}
  transforms = {name: catalogue.read_options()[name] for name in options}
  values = chosen.loss_hyper(config) | chosen.loss_static(config)
  loss_rules.check_options(losses, transforms, values)
  loss_rules.check_values(losses, transforms, values)
  loss_rules.check_flips(config.data.flip_share, losses)


def _check_loss_keys(config: ConfigDict, used: tuple[str, ...]) -> None:
  """Refuses a key of config.loss that is set and that nothing in use reads."""
  for key, value in config.loss.items():
    if key == 'terms' or value is None or value is False:
      continue
    users = catalogue.users(key)
    if not set(users) & set(used):
      raise errors.refuse(
        f'config.loss.{key}',
        f'{value!r} is used by no chosen loss ({", ".join(used)})',
        f'set it to None, or use {", ".join(users)}',
      )


def _check_reference(config: ConfigDict) -> None:
  mode = config.reference.mode
  known = {**catalogue.read(), **catalogue.read_options()}
  for name in chosen.scored_for(config):
    if name not in known:
      raise errors.refuse(
        'config.eval.score_for',
        f'there is no loss and no option {name!r}',
        f'{loss_rules.hint(name, known)}use any of {", ".join(known)}',
      )
  losses = [*chosen.loss_terms(config), *chosen.scored_for(config)]
  losses = {name: known[name] for name in losses}
  needing = [n for n, loss in losses.items() if 'reference' in loss.needs]
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
  transforms = {name: known[name] for name in chosen.loss_options(config)}
  loss_rules.check_reference(mode, losses, transforms)
  entries = (*losses.values(), *transforms.values())
  is_read = any('reference' in entry.needs for entry in entries)
  _check_held(config, mode != 'none' and is_read)


def _check_held(config: ConfigDict, is_read: bool) -> None:
  """Refuses a form of the reference's own weights where there are none.

  Args:
    config: of the run.
    is_read: whether anything reads a reference.
  """
  reference, fix = config.reference, 'leave it out'
  for key in ('precision.reference', 'reference.offload'):
    value = config[key]
    if value == knobs.find(key).default:
      continue
    problem = ''
    if not is_read:
      problem = 'is not used: no loss reads a reference'
    elif 'tr_dpo' in chosen.loss_options(config):
      problem = (
        'is not allowed with tr_dpo, which moves the reference by less than '
        'bfloat16 resolves'
        if key == 'precision.reference'
        else 'is not allowed with tr_dpo, which moves the reference on the '
        'devices'
      )
    elif config.adapter.rank and not reference.init_from:
      problem = "is not used: the reference is the policy's own base"
      fix = 'use adapter.base, which says how the base is held'
    elif key == 'reference.offload' and reference.mode == 'cache':
      problem = (
        "is not used with reference.mode 'cache', which drops the reference "
        'once it has scored'
      )
    if problem:
      raise errors.refuse(f'config.{key}', f'{value!r} {problem}', fix)


def _check_data(config: ConfigDict) -> None:
  data = config.data
  names = rules.split_names(data.train)
  shares = rules.split_numbers(data.proportions)
  if shares and len(shares) != len(names):
    raise errors.refuse(
      'config.data.proportions',
      f'{data.proportions!r} has {len(shares)} numbers for {len(names)} '
      'sources of data.train',
      'give one each',
    )
  if foreign.parse_renames(data.columns) and not any(
    name not in synthetic.EMBEDDED and not name.startswith(sources.TFDS)
    for name in (*names, *rules.split_names(data.eval))
    if name != 'split'
  ):
    raise errors.refuse(
      'config.data.columns',
      f'{data.columns!r} is for data files, and {", ".join(names)} is none',
      'leave it empty',
    )
  if data.row_length:
    longest = f'data.max_length={data.max_length}'
    limits.check_row_length(data.max_length, data.row_length, longest)
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
  # The code that renders a template passes these itself.
  reserved = ('messages', 'tools', 'documents', 'add_generation_prompt')
  for name in chosen.template_args(config):
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
  if model.add_rows and not model.init_from:
    raise errors.refuse(
      'config.model.add_rows',
      'True is used with model.init_from only',
      'leave it out: a preset has a row per token',
    )
  if model.scan_unroll > 1 and not model.scan_layers:
    key, why = 'config.model.scan_unroll', 'scan_layers=False leaves no loop'
    raise errors.refuse(key, why, 'leave it out')
  if not config.tokenizer and not model.init_from:
    raise errors.refuse(
      'config.tokenizer',
      "'' takes the tokenizer of model.init_from, which is not set",
      "use 'byte', a folder or a tokenizer.json",
    )


def _check_adapter(config: ConfigDict) -> None:
  adapter, reference = config.adapter, config.reference
  if not adapter.rank:
    for key, value in adapter.items():
      if value != knobs.find(f'adapter.{key}').default:
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
  if adapter.init_from and adapter.init != knobs.find('adapter.init').default:
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
  _check_keywords(optim, 'name', knobs.optimizers())
  _check_keywords(optim, 'schedule', knobs.schedules())
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


def _check_keywords(
  optim: ConfigDict, key: str, known: Mapping[str, Mapping[str, float]]
) -> None:
  """Refuses a keyword that the chosen optimizer or schedule does not have.

  Args:
    optim: config.optim.
    key: the key that chooses one, 'name' or 'schedule'.
    known: {what can be chosen: {keyword: default}}.
  """
  keywords = dict.fromkeys(word for words in known.values() for word in words)
  for word in keywords:
    unset = knobs.find(f'optim.{word}').default
    if word not in known[optim[key]] and optim[word] != unset:
      users = [name for name, words in known.items() if word in words]
      raise errors.refuse(
        f'config.optim.{word}',
        f'{optim[word]!r} is not used by {optim[key]}',
        f'set it to {unset}, or optim.{key} to {" or ".join(users)}',
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
  limits.check_microbatches(train.batch_size, train.microbatches)
  if list(config.mesh.values()).count(-1) > 1:
    raise errors.refuse(
      'config.mesh', 'more than one size is -1', 'leave the rest to one axis'
    )


def _check_sample(sample: ConfigDict) -> None:
  if sample.temperature > 0:
    return
  for key in ('top_k', 'top_p', 'min_p'):
    off = knobs.find(f'sample.{key}').default
    if sample[key] != off:
      raise errors.refuse(
        f'config.sample.{key}',
        f'{sample[key]} is not used by greedy sampling (sample.temperature=0)',
        f'use {off}, or a temperature above 0',
      )


def _check_mesh(mesh: ConfigDict, num_devices: int) -> None:
  # Who has counted the devices has imported jax already.
  from dpo_jax import sharding

  sharding.mesh_sizes(**mesh, num_devices=num_devices)
