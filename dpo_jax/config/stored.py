"""config.json of a run <-> config: what a later command may say otherwise.

Comes in: the config that a run stored, as plain values. Goes out: the same as
a ConfigDict, both sides with every key filled in, and the lists of keys that a
later command may change. Reads no file and compares nothing.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from ml_collections.config_dict import ConfigDict

from dpo_jax import errors
from dpo_jax.config import chosen, knobs
from dpo_jax.config.load import finish
from dpo_jax.losses import catalogue
from dpo_jax.storage import files

# Keys and sections that no trained or measured number depends on. A continued
# run may change them, and runs that differ in nothing else are one group.
NO_NUMBERS = (
  'data.cache_dir',
  'data.encode_processes',
  'data.manual_dir',
  'mesh',
  'model.remat',
  'reference.offload',
  'train.save_every',
  'train.save_every_minutes',
  'train.keep_checkpoints',
  'train.watchdog_minutes',
  'train.skip_bad_steps',  # a run that needed it stopped
  'precision.head_chunk',
  'train.profile_steps',
  'eval.num_samples',
  'log',
  'sample',
  'adapter.export',
)
# Numbers that the jitted steps take as arguments: other values, same programs.
_TRACED = ('seed', 'optim.learning_rate', 'model.router_aux_coef')
# Those, and what belongs to the commands that read a run and train nothing.
READERS = (*NO_NUMBERS, 'data.eval', 'eval', 'precision')


def resolve(config: ConfigDict) -> dict[str, Any]:
  """The config as plain values, with the defaults of its losses filled in."""
  plain = config.to_dict()
  plain['loss']['terms'] = chosen.loss_terms(config)
  return complete(plain)


def complete(values: Mapping[str, Any]) -> dict[str, Any]:
  """Nested config values in which every key of today has a value.

  A key that is missing gets its default, and a keyword of a chosen loss or
  option that is None gets that loss's. So a config.json of an older version
  equals the config of today that asks for the same run.

  Args:
    values: nested plain values of a config; keys unknown today stay.
  """
  out = _merged(knobs.base().to_dict(), values)
  loss = out.get('loss')
  if not isinstance(loss, dict) or not isinstance(loss.get('terms'), dict):
    return out  # damaged: the checks of the config name the key
  losses, options = catalogue.read(), catalogue.read_options()
  entries = [losses[name] for name in loss['terms'] if name in losses]
  entries += [
    option
    for name, option in options.items()
    if loss.get(name) is not None and loss.get(name) is not False
  ]
  for entry in entries:
    defaults = entry.hyper | {k: v[0] for k, v in entry.static.items()}
    for key, value in defaults.items():
      if loss.get(key) is None:
        loss[key] = value
  return out


def read(
  values: Mapping[str, Any],
  where: Any,
  overrides: Iterable[tuple[str, Any]] = (),
) -> ConfigDict:
  """A ConfigDict of the values that a run stored.

  Args:
    values: of config.json.
    where: the file, for messages.
    overrides: (dotted key, value) in order, as from a command line.

  Returns:
    A locked ConfigDict, not yet validated.

  Raises:
    InputError: a key that this version does not have, or a value of another
      type.
  """
  config = knobs.base()
  known = files.flatten(config, keep=['loss.terms'])
  fix = 'use the version of the code that made the run: env.json has its commit'
  for key, value in files.flatten(values, keep=['loss.terms']).items():
    if key not in known:
      raise errors.refuse(where, f'config.{key} is no key any more', fix)
    if key == 'loss.terms':
      continue
    value = tuple(value) if isinstance(value, list) else value
    try:
      config.update_from_flattened_dict({key: value})
    except (TypeError, ValueError, AttributeError) as error:
      raise errors.refuse(
        where, f'config.{key} is {value!r}, of another type', 'put back a copy'
      ) from error
  terms = values.get('loss', {}).get('terms', {})
  if not isinstance(terms, Mapping):
    raise errors.refuse(
      where, f'config.loss.terms is {terms!r}', 'put back a copy'
    )
  with config.unlocked():
    config.loss.terms = ConfigDict(dict(terms))
  return finish(config, overrides)


def numbers(config: ConfigDict) -> dict[str, Any]:
  """{dotted key: value} of all that a run's numbers depend on."""
  flat = files.flatten(files.as_json(resolve(config)))
  return {key: v for key, v in flat.items() if not _is_in(key, NO_NUMBERS)}


def graph(config: ConfigDict) -> str:
  """The digest of a config without the numbers that a step takes as arguments.

  Configs of one graph run the same compiled programs on the same data.
  """
  traced = {*_TRACED, *(f'loss.{key}' for key in catalogue.hyper_names())}
  return files.digest(
    {
      key: value
      for key, value in numbers(config).items()
      if key not in traced and not key.startswith('loss.terms.')
    }
    | {'terms': sorted(chosen.loss_terms(config))}
    # An option is on if its number is set.
    | {'options': sorted(chosen.loss_options(config))}
  )


def _is_in(key: str, names: Collection[str]) -> bool:
  """Whether a dotted key is among the names, or in one of their sections."""
  return any(key == name or key.startswith(f'{name}.') for name in names)


def _merged(defaults: Mapping, values: Mapping) -> dict[str, Any]:
  """The values over the defaults, section by section; loss.terms is whole."""
  out = dict(defaults)
  for key, value in values.items():
    is_section = isinstance(value, Mapping) and key != 'terms'
    if is_section and isinstance(out.get(key), Mapping):
      out[key] = _merged(out[key], value)
    else:
      out[key] = dict(value) if isinstance(value, Mapping) else value
  return out
