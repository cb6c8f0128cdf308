"""newest policy -> a Hugging Face or PEFT folder.

Comes in: a workdir. Goes out: the folder --export_to, written whole or not at
all. Changes nothing in the workdir.
"""

import pathlib

import jax
from ml_collections.config_dict import ConfigDict

from dpo_jax.run import session as sessions
from dpo_jax.run import weights
from dpo_jax.storage import hf_checkpoint, initial_weights, peft_checkpoint


def main(config: ConfigDict, workdir: str, export_to: str) -> int:
  """--mode=export: writes the newest policy, merged or as an adapter."""
  with sessions.open_workdir(config, workdir) as session:
    inputs = session.job.inputs
    policy = sessions.newest_policy(session)
    if config.adapter.export == 'peft':
      peft_checkpoint.save(
        export_to,
        policy.params,
        inputs.model,
        inputs.adapter,
        base=inputs.weights,
      )
      print(f'{export_to}: the adapter of step {policy.step}')
      return 0
    params = weights.merged(session.job, policy.params)
  # An exported folder loads by itself: it holds the tokenizer's files too, if
  # the tokenizer has any.
  tokenizer = config.tokenizer or initial_weights.tokenizer_of(inputs.weights)
  files = tokenizer if pathlib.Path(tokenizer).is_dir() else None
  hf_checkpoint.save(
    export_to, jax.device_get(params), inputs.model, tokenizer_files_from=files
  )
  print(f'{export_to}: the policy of step {policy.step}')
  return 0
