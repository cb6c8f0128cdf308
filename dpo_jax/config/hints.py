"""Names of other trainers -> the names here, for the hints of refusals.

Comes in: a config key or the name of a loss that does not exist here. Goes
out: a clause that begins the fix, or ''. Refuses nothing. Imports no jax.
"""

from collections.abc import Iterable

from dpo_jax import errors
from dpo_jax.losses import rules as loss_rules

# Last part of a key, letter case and '-' ignored -> key here. The names are
# those of TRL's DPOConfig and TrainingArguments, PEFT, axolotl, LlamaFactory,
# alignment-handbook and the original DPO code.
KEYS = {
  'lr': 'optim.learning_rate',
  'learning_rate': 'optim.learning_rate',
  'lr_scheduler_type': 'optim.schedule',
  'lr_scheduler': 'optim.schedule',
  'scheduler': 'optim.schedule',
  'optimizer': 'optim.name',
  'optim': 'optim.name',
  'warmup': 'optim.warmup_steps',
  'warmup_ratio': 'optim.warmup_fraction',
  'warmup_steps': 'optim.warmup_steps',
  'max_grad_norm': 'optim.clip_norm',
  'grad_clip': 'optim.clip_norm',
  'gradient_clipping': 'optim.clip_norm',
  'wd': 'optim.weight_decay',
  'weight_decay': 'optim.weight_decay',
  'adam_beta1': 'optim.b1',
  'adam_beta2': 'optim.b2',
  'beta1': 'optim.b1',
  'beta2': 'optim.b2',
  'adam_epsilon': 'optim.eps',
  'epsilon': 'optim.eps',
  'epochs': 'train.num_epochs',
  'num_epochs': 'train.num_epochs',
  'n_epochs': 'train.num_epochs',
  'num_train_epochs': 'train.num_epochs',
  'steps': 'train.num_steps',
  'max_steps': 'train.num_steps',
  'num_steps': 'train.num_steps',
  'num_updates': 'train.num_steps',
  'batch_size': 'train.batch_size',
  'global_batch_size': 'train.batch_size',
  'per_device_train_batch_size': 'train.batch_size',
  'per_device_batch_size': 'train.batch_size',
  'micro_batch_size': 'train.microbatches',
  'accum': 'train.microbatches',
  'grad_accum': 'train.microbatches',
  'gradient_accumulation_steps': 'train.microbatches',
  'save_steps': 'train.save_every',
  'save_total_limit': 'train.keep_checkpoints',
  'eval_steps': 'train.eval_every',
  'per_device_eval_batch_size': 'eval.batch_size',
  'eval_batch_size': 'eval.batch_size',
  'max_seq_length': 'data.max_length',
  'max_seq_len': 'data.max_length',
  'seq_length': 'data.max_length',
  'sequence_len': 'data.max_length',
  'cutoff_len': 'data.max_length',
  'max_length': 'data.max_length',
  'max_prompt_length': 'data.prompt_max_length',
  'max_completion_length': 'data.max_length',
  'truncation_mode': 'data.truncation',
  'padding_free': 'data.layout',
  'packing': 'data.layout',
  'sample_packing': 'data.layout',
  'dataset': 'data.train',
  'datasets': 'data.train',
  'dataset_name': 'data.train',
  'train_data': 'data.train',
  'train_file': 'data.train',
  'data_path': 'data.train',
  'eval_dataset': 'data.eval',
  'val_set_size': 'data.eval_pairs',
  'test_size': 'data.eval_pairs',
  'template': 'data.chat_template',
  'chat_template': 'data.chat_template',
  'train_on_inputs': 'data.train_on',
  'assistant_only_loss': 'data.train_on',
  'model': 'model.init_from',
  'base_model': 'model.init_from',
  'model_name': 'model.init_from',
  'model_name_or_path': 'model.init_from',
  'model_path': 'model.init_from',
  'policy': 'model.init_from',
  'ref_model': 'reference.init_from',
  'reference_model': 'reference.init_from',
  'ref_model_name_or_path': 'reference.init_from',
  'precompute_ref_log_probs': 'reference.mode',
  'reference_free': 'reference.mode',
  'gradient_checkpointing': 'model.remat',
  'activation_checkpointing': 'model.remat',
  'dtype': 'precision.compute',
  'torch_dtype': 'precision.compute',
  'bf16': 'precision.compute',
  'fp16': 'precision.compute',
  'mixed_precision': 'precision.compute',
  'r': 'adapter.rank',
  'lora_r': 'adapter.rank',
  'lora_rank': 'adapter.rank',
  'lora_alpha': 'adapter.alpha',
  'lora_target_modules': 'adapter.targets',
  'target_modules': 'adapter.targets',
  'use_rslora': 'adapter.rslora',
  'load_in_4bit': 'adapter.base',
  'load_in_8bit': 'adapter.base',
  'beta': 'loss.beta',
  'pref_beta': 'loss.beta',
  'dpo_beta': 'loss.beta',
  'kto_beta': 'loss.beta',
  'simpo_gamma': 'loss.gamma',
  'f_divergence_type': 'loss.f_divergence',
  'use_weighting': 'loss.wpo',
  'sync_ref_model': 'loss.tr_dpo',
  'ref_model_mixup_alpha': 'loss.tr_alpha',
  'ref_model_sync_steps': 'loss.tr_tau',
  'seed': 'seed',
  'random_seed': 'seed',
  'max_new_tokens': 'sample.max_new_tokens',
  'temperature': 'sample.temperature',
  'top_p': 'sample.top_p',
  'top_k': 'sample.top_k',
}
# Keys elsewhere whose value is the name of a loss.
_LOSS_KEYS = ('loss', 'loss_type', 'pref_loss', 'loss_fn', 'loss_name')
_TERMS = 'loss.terms.'
_RPO_KEYS = ('rpo_alpha', 'sft_weight', 'sft_coef', 'pref_ftx', 'cpo_alpha')


def key(name: str, known: Iterable[str]) -> str:
  """Returns the fix of an unknown config key, or '' if nothing is close.

  Args:
    name: dotted, without 'config.'.
    known: keys that exist.
  """
  known = set(known)
  if name.startswith(_TERMS):
    terms = [k.removeprefix(_TERMS) for k in known if k.startswith(_TERMS)]
    meant = loss_rules.hint(name.removeprefix(_TERMS), terms).rstrip('; ')
    return meant or errors.did_you_mean(name, known).strip()
  last = name.lower().rpartition('.')[2].replace('-', '_')
  if last in _LOSS_KEYS:
    return 'a loss is chosen by its weight, e.g. config.loss.terms.sigmoid=1'
  if last in _RPO_KEYS:
    return f'{name} is config.loss.terms.nll here, the weight of that term'
  meant = KEYS.get(last)
  if meant in known:
    return f'{name} is config.{meant} here'
  return errors.did_you_mean(name, known).strip()
