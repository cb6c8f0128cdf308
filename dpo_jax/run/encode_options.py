"""config -> how records are encoded.

Comes in: a validated config and the tokenizer. Goes out: EncodeOptions, with
the chat template that the config names, and a line where nothing used it.
Reads that template's file; encodes nothing.
"""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ml_collections.config_dict import ConfigDict

from dpo_jax import errors
from dpo_jax.config import rules as config_rules
from dpo_jax.data.text import chat, encode
from dpo_jax.data.text.encoders import Tokenizer


def read(
  config: ConfigDict, tokenizer: Tokenizer, shares: Sequence[float]
) -> encode.EncodeOptions:
  """The options, the template's source among them.

  Args:
    config: validated.
    tokenizer: whose templates data.chat_template may name.
    shares: how many times each source is taken.

  Raises:
    InputError: data.chat_template is neither a file nor such a name.
  """
  data = config.data
  return encode.EncodeOptions(
    max_length=data.max_length,
    truncation=data.truncation,
    prompt_max_length=data.prompt_max_length or None,
    stage=config.stage,
    add_eos=data.add_eos,
    add_bos=data.add_bos,
    use_chat_template=data.use_chat_template == 'always',
    chat_template=_read_template(data.chat_template, tokenizer),
    template_args=config_rules.json_object(data.template_args),
    train_on=data.train_on,
    allow_control_tokens=data.allow_control_tokens,
    # A source taken more than once is meant to repeat its records.
    drop_duplicates=data.drop_duplicates and max(shares) <= 1,
    strict=data.strict,
  )


def log_unused(
  use: str,
  options: encode.EncodeOptions,
  ledger: Mapping[str, Any],
  log: Callable[[str], None],
) -> None:
  """Says which options for chats were given for records that are none.

  Args:
    use: 'train' or 'eval'.
    options: as the records were encoded.
    ledger: Ledger.as_dict of the encoding.
    log: takes one line of text.
  """
  line = chat.unused(
    ledger['counters']['chats'],
    chat_template=options.chat_template,
    template_args=dict(options.template_args),
    train_on=options.train_on,
  )
  if line:
    log(f'{use}: {line}')


def _read_template(name: str, tokenizer: Tokenizer) -> str | None:
  """The source that config.data.chat_template names, if any."""
  named = tokenizer.chat_templates
  if not name or pathlib.Path(name).is_file():
    return _read_text(name) if name else None
  if name not in named:
    raise errors.refuse(
      'config.data.chat_template',
      f'{name!r} is no file, and no template of tokenizer {tokenizer.name!r}',
      'give a Jinja file, or one of its names: '
      f'{", ".join(map(repr, named)) or "it has none"}',
    )
  return named[name]


def _read_text(name: str) -> str:
  try:
    return pathlib.Path(name).read_text(encoding='utf-8')
  except (OSError, UnicodeDecodeError) as error:
    raise errors.refuse(
      'config.data.chat_template',
      f'{name!r} cannot be read ({error})',
      'give a Jinja file in UTF-8',
    ) from error
