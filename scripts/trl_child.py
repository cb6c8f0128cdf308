"""Trains with TRL's DPOTrainer for scripts/benchmark.py --against=trl.

Runs in an environment of its own, with torch, trl and peft and without jax; it
is started by the benchmark with a folder (initial weights, pairs as token ids,
their order) and the name of a variant, and answers the benchmark's questions.
The loop is the trainer's own: it waits at the end of a round of updates until
the next one is asked for, and begins again from the initial weights.

The variants, all with TRL's optimizer, clipping and beta, at a constant rate:
  as_shipped    the defaults: reference in the step, gradient checkpointing
  precomputed   the reference's log-probs are computed before training
  best_shipped  also no gradient checkpointing, and padding_free if it has it
  patched       as_shipped, with the head on completion tokens only, as on CUDA
  best_patched  both
  lora          as_shipped, with an adapter on all linear maps
"""

import copy
import importlib.metadata
import json
import os
import pathlib
import sys
from typing import NamedTuple

sys.path.append(
  str(pathlib.Path(__file__).resolve().parents[1] / 'dpo_jax/bench')
)

import protocol  # noqa: E402


class Variant(NamedTuple):
  """Options of the trainer, and changes to it."""

  precomputed: bool = False
  checkpointed: bool = True  # activations of a layer are computed twice
  patched: bool = False
  lora: bool = False
  padding_free: bool = False


VARIANTS = {
  'as_shipped': Variant(),
  'precomputed': Variant(precomputed=True),
  'best_shipped': Variant(
    precomputed=True, checkpointed=False, padding_free=True
  ),
  'patched': Variant(patched=True),
  'best_patched': Variant(precomputed=True, checkpointed=False, patched=True),
  'lora': Variant(lora=True),
}


def main(folder: pathlib.Path, name: str) -> None:
  """Loads all, then trains until the questions end."""
  channel = protocol.Channel()
  os.environ.update(
    HF_HUB_OFFLINE='1', HF_HOME=str(folder / 'hf'), TQDM_DISABLE='1'
  )
  if channel.question() != 'info':
    return
  settings = json.loads((folder / 'settings.json').read_text())
  trainer = make_trainer(folder, settings, VARIANTS[name])
  turns = make_turns(channel, trainer, settings['steps'])
  trainer.add_callback(turns)
  packages = ('trl', 'torch', 'transformers', 'peft', 'accelerate')
  versions = [f'{p} {importlib.metadata.version(p)}' for p in packages]
  channel.answer(
    {
      'framework': ', '.join(versions),
      'padding_free': bool(getattr(trainer, 'padding_free', False)),
      'threads': int(__import__('torch').get_num_threads()),
    }
  )
  if channel.question() == 'round':
    trainer.train()


def make_trainer(folder: pathlib.Path, settings, variant: Variant):
  """The trainer, on the pairs of the benchmark in its order."""
  import datasets
  import torch
  import transformers
  import trl
  import trl.trainer.utils

  torch.manual_seed(0)
  if variant.patched:
    # TRL projects the valid positions only if it can use Triton.
    trl.trainer.utils._use_triton = lambda device: True
  rounds = settings['rounds'] + 1

  class Trainer(trl.DPOTrainer):
    """A DPOTrainer that is given token ids, and remembers its losses."""

    losses = []

    def _prepare_dataset(self, dataset, *args):
      return dataset

    def _precompute_ref_logps(self, dataset, name, batch_size):
      # Every round has the same pairs: those of one are scored.
      one = dataset.select(range(len(dataset) // rounds))
      one = super()._precompute_ref_logps(one, name, batch_size)
      return datasets.concatenate_datasets([one] * rounds)

    def training_step(self, *args, **kwargs):
      loss = super().training_step(*args, **kwargs)
      self.losses.append(loss.detach())
      return loss

  model = _model(settings)
  needs_copy = not (variant.precomputed or variant.lora)
  trainer = Trainer(
    model=model,
    ref_model=copy.deepcopy(model) if needs_copy else None,
    args=trl.DPOConfig(
      output_dir=str(folder / 'trl'),
      per_device_train_batch_size=settings['batch_size'],
      max_steps=rounds * settings['steps'],
      max_length=settings['max_length'],
      learning_rate=settings['learning_rate'],
      lr_scheduler_type='constant',
      beta=0.1,
      bf16=settings['dtype'] == 'bfloat16',
      use_cpu=settings['platform'] == 'cpu',
      precompute_ref_log_probs=variant.precomputed,
      padding_free=variant.padding_free,
      train_sampling_strategy='sequential',
      save_strategy='no',
      report_to='none',
      disable_tqdm=True,
      **({} if variant.checkpointed else {'gradient_checkpointing': False}),
    ),
    train_dataset=datasets.Dataset.from_dict(_columns(folder, rounds)),
    processing_class=_tokenizer(transformers, settings),
    peft_config=_adapter(settings) if variant.lora else None,
  )
  if variant.lora and settings['same_weights']:
    _load_adapter(trainer.model, settings)
  return trainer


def make_turns(channel: protocol.Channel, trainer, steps: int):
  """A callback that answers at the end of each round, and waits there."""
  import torch
  import transformers

  on_cuda = not trainer.args.use_cpu and torch.cuda.is_available()

  class Turns(transformers.TrainerCallback):
    """Times rounds of updates; each begins from the initial weights."""

    def on_train_begin(self, *args, **kwargs):
      self.first = {
        name: value.detach().clone()
        for name, value in trainer.model.named_parameters()
        if value.requires_grad
      }
      self.clock = protocol.Clock()

    def on_step_end(self, args, state, control, **kwargs):
      if state.global_step % steps:
        return
      if on_cuda:
        torch.cuda.synchronize()
      seconds = self.clock.read()
      peak = torch.cuda.max_memory_allocated() / 1e6 if on_cuda else 0.0
      channel.answer(
        seconds
        | {
          'losses': [float(loss) for loss in trainer.losses],
          'peak_rss_mb': protocol.peak_rss_mb(),
          'device_peak_mb': peak,
        }
      )
      self.begin_again()
      if not channel.question():
        # The other end is closed: nothing of this process is needed.
        os._exit(0)
      self.clock = protocol.Clock()

    def begin_again(self):
      """Initial weights, no moments."""
      trainer.losses.clear()
      with torch.no_grad():
        for name, value in trainer.model.named_parameters():
          if value.requires_grad:
            value.copy_(self.first[name])
      inner = getattr(trainer.optimizer, 'optimizer', trainer.optimizer)
      inner.state.clear()

  return Turns()


def _columns(folder: pathlib.Path, rounds: int):
  """The pairs as token ids, in the order of a round, once per round."""
  import numpy as np

  with np.load(folder / 'pairs.npz') as file:
    tokens, lengths = file['tokens'], file['lengths']
  parts = np.split(tokens, np.cumsum(lengths.ravel())[:-1])
  order = json.loads((folder / 'order.json').read_text())
  return {
    f'{name}_ids': [parts[3 * i + part].tolist() for i in order] * rounds
    for part, name in enumerate(('prompt', 'chosen', 'rejected'))
  }


def _model(settings):
  """The policy, float32, with the weights of the benchmark or its own."""
  import torch
  import transformers

  folder = settings['weights']
  if settings['same_weights']:
    return transformers.AutoModelForCausalLM.from_pretrained(
      folder, dtype=torch.float32
    )
  config = transformers.AutoConfig.from_pretrained(folder)
  return transformers.AutoModelForCausalLM.from_config(
    config, dtype=torch.float32
  )


def _tokenizer(transformers, settings):
  """A tokenizer that only says which id pads: the pairs are token ids."""
  import tokenizers

  vocabulary = {'<pad>': settings['pad_id'], '<unk>': settings['pad_id'] + 1}
  model = tokenizers.models.WordLevel(vocabulary, unk_token='<unk>')
  return transformers.PreTrainedTokenizerFast(
    tokenizer_object=tokenizers.Tokenizer(model),
    pad_token='<pad>',
    eos_token='<pad>',
  )


def _adapter(settings):
  import peft

  return peft.LoraConfig(
    r=settings['lora'],
    lora_alpha=2 * settings['lora'],
    target_modules='all-linear',
    task_type='CAUSAL_LM',
  )


def _load_adapter(model, settings) -> None:
  """Gives a new adapter the initial factors of the benchmark."""
  import peft
  from peft.utils import load_peft_weights

  factors = load_peft_weights(settings['adapter'], device='cpu')
  result = peft.set_peft_model_state_dict(model, factors)
  if result.unexpected_keys:
    raise ValueError(f'no such factors: {result.unexpected_keys[:3]}')


if __name__ == '__main__':
  main(pathlib.Path(sys.argv[1]), sys.argv[2])
