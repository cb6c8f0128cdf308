"""config -> chat templates that an exported model takes along.

Comes in: a validated config and its tokenizer. Goes out: Jinja by name, which
renders as the run did without any argument. Writes nothing.
"""

from ml_collections.config_dict import ConfigDict

from dpo_jax import config as config_lib
from dpo_jax.data.text.encoders import Tokenizer
from dpo_jax.run import datasets


def in_use(config: ConfigDict, tokenizer: Tokenizer) -> dict[str, str] | None:
  """The chat templates in use by name, with the config's arguments in them.

  Returns:
    None if they are the tokenizer's own.
  """
  source = datasets.read_template(config.data.chat_template, tokenizer)
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
