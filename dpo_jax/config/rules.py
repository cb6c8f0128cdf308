"""What each knob may be by itself, and the words of a refusal.

Comes in: a dotted key and a value. Goes out: the key's Rule, or the line that
says what is wrong, what is allowed and what is nearest. Knows nothing of
combinations: `config_check.py` does.
"""

import json
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ml_collections.config_dict import ConfigDict

from dpo_jax import errors
from dpo_jax.data.sources import records
from dpo_jax.data.text import chat, truncation
from dpo_jax.losses import catalogue as config_losses
from dpo_jax.models import presets


class Rule(NamedTuple):
  """What one key may be."""

  allowed: str  # in words, after 'use'
  holds: Callable[[Any], bool]
  choices: tuple[str, ...] = ()  # for the nearest match


def rule(key: str) -> Rule:
  """The Rule of a dotted key of base()."""
  if key in RULES:
    return RULES[key]
  if key.startswith('loss.terms.'):
    return _WEIGHT
  option = key.removeprefix('loss.')
  static = config_losses.static_choices()
  if option in static:
    return _or_none(_choice(*static[option]))
  if option in config_losses.switches():
    return _or_none(_FLAG)
  return _or_none(_LOSS_RULES.get(option, _NUMBER))


def flatten(config: ConfigDict, prefix: str = '') -> dict[str, Any]:
  """{dotted key: value} of every leaf; an empty section has no leaf."""
  leaves = {}
  for key, value in config.items():
    if isinstance(value, ConfigDict):
      leaves |= flatten(value, f'{prefix}{key}.')
    else:
      leaves[f'{prefix}{key}'] = value
  return leaves


def split_names(value: Any) -> tuple[str, ...]:
  """A tuple of names, or the names of a text with commas between them."""
  if isinstance(value, str):
    return tuple(name.strip() for name in value.split(',') if name.strip())
  return tuple(value)


def split_numbers(value: Any) -> tuple[float, ...]:
  """Likewise for numbers; ValueError where one is not a number."""
  parts = value.split(',') if isinstance(value, str) else value
  parts = [parts] if isinstance(parts, int | float) else parts
  return tuple(float(part) for part in parts if part != '')


def json_object(text: str) -> dict[str, Any] | None:
  """The object that a JSON text is, {} of ''; None where it is none."""
  try:
    value = json.loads(text or '{}')
  except (ValueError, RecursionError):
    return None
  return value if isinstance(value, dict) else None


def refusal(key: str, value: Any) -> str:
  """The line that says that a key cannot have this value."""
  allowed, _, choices = rule(key)
  hint = errors.did_you_mean(value, choices)
  shown = errors.show(value, 100)
  return f'config.{key}: {shown} is not allowed; fix: {hint}use {allowed}'


def unknown_key(key: str, known: Mapping[str, Any]) -> str:
  """The line that says that there is no such key."""
  section = sorted(k for k in known if k.startswith(f'{key}.'))
  if section:
    more = f' and {len(section) - 40} more' if len(section) > 40 else ''
    return (
      f'config.{key}: is a section, not a value; fix: set one of its keys: '
      f'{", ".join(section[:40])}{more}'
    )
  hint = errors.did_you_mean(key, known)
  if not hint:
    section = key.rpartition('.')[0]
    keys = [k for k in known if k.startswith(f'{section}.')]
    keys = keys or dict.fromkeys(k.partition('.')[0] for k in known)
    hint = f'there are {", ".join(sorted(keys))}'
  return f'config.{key}: no such key; fix: {hint.strip()}'


def _is_number(value: Any) -> bool:
  return type(value) in (int, float) and math.isfinite(value)


def _whole(least: int, zero: str = '', example: int | None = None) -> Rule:
  words = f'a whole number >= {least}'
  words += f', e.g. {example}' if example else ''
  words += f' (0 = {zero})' if zero else ''
  return Rule(words, lambda v: type(v) is int and v >= least)


def _above(low: float, example: float) -> Rule:
  return Rule(
    f'a number > {low:g}, e.g. {example:g}', lambda v: _is_number(v) and v > low
  )


def _at_least(low: float, note: str = '') -> Rule:
  return Rule(
    f'a number >= {low:g}{note}', lambda v: _is_number(v) and v >= low
  )


def _within(low: float, high: float) -> Rule:
  """In [low, high)."""
  return Rule(
    f'a number in [{low:g}, {high:g})',
    lambda v: _is_number(v) and low <= v < high,
  )


def _choice(*choices: str) -> Rule:
  return Rule(f'one of {", ".join(choices)}', choices.__contains__, choices)


def _or_none(rule: Rule) -> Rule:
  return rule._replace(holds=lambda v: v is None or rule.holds(v))


def _or_empty(rule: Rule) -> Rule:
  return rule._replace(holds=lambda v: v == '' or rule.holds(v))


_FLAG = Rule('true or false', lambda v: type(v) is bool)
_NUMBER = Rule('a finite number', _is_number)


def _text(what: str) -> Rule:
  return Rule(what, lambda v: isinstance(v, str))


def _is_names(value: Any) -> bool:
  if not isinstance(value, str | tuple) or not split_names(value):
    return False
  return all(isinstance(name, str) for name in split_names(value))


def _is_shares(value: Any) -> bool:
  try:
    return all(math.isfinite(n) and n >= 0 for n in split_numbers(value))
  except (TypeError, ValueError):
    return False


def _mesh_size(value: Any) -> bool:
  return type(value) is int and (value == -1 or value >= 1)


_MESH_SIZE = Rule('a whole number >= 1, or -1 for the rest', _mesh_size)

_SEED = Rule(
  'a whole number in [0, 2**32)', lambda v: type(v) is int and 0 <= v < 2**32
)
_SHARE = Rule('a number in (0, 1]', lambda v: _is_number(v) and 0 < v <= 1)

RULES: dict[str, Rule] = {
  'stage': _choice('sft', 'dpo'),
  'seed': _SEED,
  'data.train': Rule('a file or a source name, or several as a,b', _is_names),
  'data.proportions': Rule('numbers >= 0 as 1,0.5', _is_shares),
  'data.eval': Rule(
    "a file, a source name or 'split'",
    lambda v: isinstance(v, str) and len(split_names(v)) == 1,
  ),
  'data.eval_pairs': _whole(1, example=512),
  'data.manual_dir': _text('a folder'),
  'data.cache_dir': _text('a folder'),
  'data.row_format': _choice('auto', *records.FORMATS),
  'data.use_token_ids': _FLAG,
  'data.chat_template': _text('a Jinja file or a name'),
  'data.use_chat_template': _choice('auto', 'always'),
  'data.template_args': Rule(
    'a JSON object, e.g. {"enable_thinking": false}',
    lambda v: isinstance(v, str) and json_object(v) is not None,
  ),
  'data.train_on': _choice(*chat.TRAIN_ON),
  'data.add_bos': _or_none(_FLAG),
  'data.allow_control_tokens': _FLAG,
  'data.add_eos': _FLAG,
  'data.max_length': _whole(2, example=512),
  'data.prompt_max_length': _whole(0, zero='max_length - 1'),
  'data.truncation': _choice(*truncation.POLICIES),
  'data.drop_duplicates': _FLAG,
  'data.strict': _FLAG,
  'data.layout': _choice('shared', 'packed', 'padded'),
  'data.row_length': _whole(0, zero='data.max_length'),
  'data.max_shapes': _whole(1, example=4),
  'tokenizer': _text("a folder, a tokenizer.json or 'byte'"),
  'model.init_from': _text('a folder'),
  'model.preset': _or_empty(_choice(*presets.names())),
  'model.vocab_size': _whole(0, zero="the tokenizer's"),
  'model.allow_larger_vocab': _FLAG,
  'model.router_aux_coef': _or_none(_at_least(0)),
  'model.remat': _choice('none', 'full', 'dots'),
  'model.attention_block': _whole(1, example=128),
  'adapter.rank': _whole(0, zero='all weights are trained', example=16),
  'adapter.alpha': _above(0, example=16),
  'adapter.rslora': _FLAG,
  'adapter.targets': _text("patterns with commas between, e.g. 'query,value'"),
  'adapter.init': _choice('b_zero', 'a_zero'),
  'adapter.init_from': _text('a PEFT folder'),
  'adapter.base': _choice('float32', 'int8', 'nf4'),
  'adapter.export': _choice('merged', 'peft'),
  'reference.mode': _choice('params', 'adapter_off', 'cache', 'none'),
  'reference.init_from': _text('a folder'),
  'optim.name': _choice('adamw', 'rmsprop', 'lion', 'adafactor'),
  'optim.learning_rate': _above(0, example=5e-7),
  'optim.schedule': _choice('constant', 'linear', 'cosine'),
  'optim.warmup_steps': _whole(0, zero='no warm-up'),
  'optim.warmup_fraction': _within(0, 1),
  'optim.final_fraction': _within(0, 1),
  'optim.weight_decay': _at_least(0),
  'optim.b1': _or_none(_within(0, 1)),
  'optim.b2': _or_none(_within(0, 1)),
  'optim.eps': _or_none(_above(0, example=1e-8)),
  'optim.clip_norm': _at_least(0, ' (0 = no clipping)'),
  'train.num_steps': _whole(0, zero='train.num_epochs says how long'),
  'train.num_epochs': _at_least(0, ' (0 = train.num_steps says how long)'),
  'train.batch_size': _whole(1, example=32),
  'train.microbatches': _whole(1),
  'train.eval_every': _whole(0, zero='only at the start and the end'),
  'train.save_every': _whole(0, zero='only at the end'),
  'train.keep_checkpoints': _whole(1),
  'eval.batch_size': _whole(1, example=32),
  'eval.max_comparisons': _whole(0, zero='all'),
  'eval.num_samples': _whole(0, zero='none'),
  'sample.prompts': _text('a JSONL file with prompt or messages'),
  'sample.num_prompts': _whole(0, zero='all'),
  'sample.num_samples': _whole(1),
  'sample.max_new_tokens': _whole(1, example=128),
  'sample.batch_size': _whole(1, example=64),
  'sample.seed': _SEED,
  'sample.temperature': _at_least(0, ' (0 = greedy)'),
  'sample.top_k': _whole(0, zero='all'),
  'sample.top_p': _SHARE,
  'sample.min_p': _within(0, 1),
  'sample.stop': Rule(
    "tokens with commas between, e.g. '<|im_end|>'",
    lambda v: v == '' or _is_names(v),
  ),
  'precision.compute': _choice('float32', 'bfloat16', 'auto'),
  'precision.head_chunk': _whole(1, example=1024),
  'mesh.data': _MESH_SIZE,
  'mesh.fsdp': _MESH_SIZE,
  'mesh.tensor': _MESH_SIZE,
}

# Loss keywords that are not any finite number.
_LOSS_RULES = {
  'beta': _above(0, example=0.1),
  'label_smoothing': _within(0, 0.5),
}
_WEIGHT = _at_least(0, ' (0 = without this term)')
