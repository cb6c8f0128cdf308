"""config -> the chat templates of a run.

Comes in: a validated config and its tokenizer. Goes out: the source of
data.chat_template; and for an exported model Jinja by name that renders as the
run did without any argument. Renders nothing and writes nothing.
"""

from collections.abc import Callable, Mapping
from typing import Any

from ml_collections.config_dict import ConfigDict

from dpo_jax import config as config_lib
from dpo_jax import errors
from dpo_jax.data.text import chat, encode
from dpo_jax.data.text.encoders import Tokenizer
from dpo_jax.storage import files


def read(name: str, tokenizer: Tokenizer) -> str | None:
  """The source text of config.data.chat_template, a file or a name.

  Raises:
    InputError: it is neither a file nor a known name.
  """
  named = tokenizer.chat_templates
  if not name or files.at(name).is_file():
    return _read_text(name) if name else None
  if name not in named:
    raise errors.refuse(
      'config.data.chat_template',
      f'{name!r} is no file, and no template of tokenizer {tokenizer.name!r}',
      'give a Jinja file, or one of its names: '
      f'{", ".join(map(repr, named)) or "it has none"}',
    )
  return named[name]


def in_use(config: ConfigDict, tokenizer: Tokenizer) -> dict[str, str] | None:
  """The chat templates in use by name, with the config's arguments in them.

  Returns:
    None if they are the tokenizer's own.
  """
  source = read(config.data.chat_template, tokenizer)
  args = config_lib.template_args(config)
  if not source and not args:
    return None
  # data.chat_template is that of all records, those with tools included.
  named = {'default': source} if source else tokenizer.chat_templates
  # A default that the caller of the template may still replace. The line break
  # is swallowed, as after every block, and what follows begins a line.
  head = ''.join(
    f'{{%- if {name} is not defined %}}{{%- set {name} = {value!r} %}}'
    '{%- endif %}'
    for name, value in args.items()
  )
  return {
    name: f'{head}\n{text}' if args else text for name, text in named.items()
  }


def log_options(
  use: str,
  options: encode.EncodeOptions,
  ledger: Mapping[str, Any],
  log: Callable[[str], None],
) -> None:
  """Logs the chat options that had no effect, and the date of the template.

  Args:
    use: 'train' or 'eval'.
    options: as the records were encoded.
    ledger: Ledger.as_dict of the encoding.
    log: takes one line of text.
  """
  num_chats = ledger['counters']['chats']
  line = chat.unused(
    num_chats,
    chat_template=options.chat_template,
    template_args=dict(options.template_args),
    train_on=options.train_on,
  )
  date = num_chats and options.template_date
  more = date and f'the chat template writes the date {date}'
  for text in filter(None, (line, more)):
    log(f'{use}: {text}')


def _read_text(name: str) -> str:
  try:
    return files.at(name).read_text(encoding='utf-8')
  except (OSError, UnicodeDecodeError) as error:
    raise errors.refuse(
      'config.data.chat_template',
      f'{name!r} cannot be read ({error})',
      'give a Jinja file in UTF-8',
    ) from error
