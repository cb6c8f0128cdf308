"""newest policy -> a Hugging Face or PEFT folder.

Comes in: a workdir. Goes out: the folder --export_to, written whole or not at
all, with the tokenizer, the stops that were trained and the chat template in
use. Reads no data and changes nothing in the workdir.
"""

from ml_collections.config_dict import ConfigDict

from dpo_jax import config as config_lib
from dpo_jax import errors
from dpo_jax.run import chat_templates, processes, sample, weights
from dpo_jax.run import session as sessions
from dpo_jax.storage import (
  files,
  handover,
  hf_checkpoint,
  hf_companions,
  initial_weights,
  peft_checkpoint,
)
from dpo_jax.storage.hf_companions import Companions


def main(
  config: ConfigDict, workdir: str, export_to: str, step: str = ''
) -> int:
  """--mode=export: writes a policy of the run, merged or as an adapter."""
  parts = config_lib.parts_read(config, 'export')
  with sessions.open_workdir(config, workdir, parts=parts) as session:
    inputs = session.job.inputs
    _check_base(config, inputs)
    companions = _companions(config, inputs)
    policy = sessions.policy(session, step=step)
    is_adapter = config.adapter.export == 'peft'
    params = policy.params
    if not is_adapter:
      params = weights.merged(session.job, params)
    params = handover.to_first(params)
    what = 'adapter' if is_adapter else 'policy'
    if not processes.is_first():
      pass
    elif is_adapter:
      peft_checkpoint.save(
        export_to,
        params,
        inputs.model,
        inputs.adapter,
        base=inputs.weights,
        companions=companions,
      )
    else:
      hf_checkpoint.save(export_to, params, inputs.model, companions=companions)
  print(f'{export_to}: the {what} of step {policy.step}')
  print(f'{export_to}: {_words(companions, inputs.tokenizer)}')
  return 0


def _check_base(config: ConfigDict, inputs) -> None:
  """Refuses an adapter on a base that has rows which its folder lacks."""
  if config.adapter.export != 'peft' or not inputs.weights:
    return
  if initial_weights.read_config(inputs.weights) != inputs.model:
    raise errors.refuse(
      'config.adapter.export',
      f"'peft' writes no rows of embeddings, and model.add_rows gave the base "
      f'{inputs.weights} more of them',
      "use 'merged'",
    )


def _companions(config: ConfigDict, inputs) -> Companions:
  """The tokenizer, the stops and the templates that the run worked with."""
  tokenizer = inputs.tokenizer
  name = config.tokenizer or initial_weights.tokenizer_of(inputs.weights)
  path = files.at(name).expanduser()
  # A tokenizer may be named by its tokenizer.json; 'byte' has no files.
  folder = path if path.is_dir() else path.parent
  has_files = (folder / 'tokenizer.json').is_file() and name != 'byte'
  stops = sample.stop_ids(tokenizer, config.sample.stop)
  return Companions(
    source=folder if has_files else None,
    ids=hf_companions.token_ids(
      tokenizer.bos_id,
      tokenizer.eos_id,
      [token for token in stops if token >= 0],
      tokenizer.pad_id,
    ),
    templates=chat_templates.in_use(config, tokenizer),
  )


def _words(companions: Companions, tokenizer) -> str:
  """The stops and the template, in one line."""
  ends = companions.ids['eos_token_id']
  ends = ends if isinstance(ends, list) else [ends]
  names = [
    f'{token} {tokenizer.decode([token], skip_special=False)!r}'
    for token in ends
    if token is not None
  ]
  template = 'the tokenizer' if companions.templates is None else 'the run'
  return (
    f'stops at {", ".join(names) or "no token"}; chat template of {template}'
  )
