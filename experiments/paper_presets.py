"""What do the published recipes reach, each in its own setting?

Question: the settings of a paper or of its released recipe, by name, so that a
new loss is compared with reported settings and not with a guess.
Command:
  python -m dpo_jax.main \
    --config=experiments/paper_presets.py:simpo_llama3_instruct \
    --workdir=runs/simpo --config.model.init_from=SFT_FOLDER \
    --config.data.train=FILE --config.data.eval=FILE
  `simpo_llama3_instruct,runlocal` makes two updates on synthetic data.
Presets: the keys of PRESETS below; comments give their sources.
Hardware: 8 accelerators of 80 GB for up to 8B parameters, hours; 64 for
tulu3_70b (estimates, not runs). The paths of models and data are placeholders:
give yours on the command line.
Expected: the numbers to reproduce are in the papers. No preset was run here at
its full setting, so no number is claimed.
"""

from dpo_jax import config as config_lib
from dpo_jax import errors
from dpo_jax.losses import rules as loss_rules

ULTRAFEEDBACK = {
  'data.train': 'tfds:ultrafeedback_binarized:train_prefs',
  'data.eval': 'tfds:ultrafeedback_binarized:test_prefs',
}

# Settings that the presets of a family share.
# Rafailov et al. 2023, arXiv:2305.18290, appendix B; the lengths, the clipping
# and the one epoch are those of the authors' code.
DPO = {
  'loss.terms': {'sigmoid': 1.0},
  'loss.beta': 0.1,
  'optim.name': 'rmsprop',
  'optim.b2': 0.99,  # torch's default
  'optim.learning_rate': 1e-6,
  'optim.schedule': 'constant',
  'optim.warmup_steps': 150,
  'optim.clip_norm': 10.0,
  'train.batch_size': 64,
  'train.microbatches': 2,
  'data.max_length': 512,
  'data.prompt_max_length': 256,
  'data.train': 'tfds:hh_rlhf:train',
  'data.eval': 'tfds:hh_rlhf:test',
  'model.init_from': 'models/pythia-2.8b-sft',
  'model.allow_larger_vocab': True,  # its rows are padded to 50,304
}
# huggingface/alignment-handbook, recipes/zephyr-7b-beta/dpo/config_full.yaml;
# the recipe does not set the clipping, so it is the default of transformers.
HANDBOOK = {
  'loss.terms': {'sigmoid': 1.0},
  'loss.beta': 0.01,
  'optim.learning_rate': 5e-7,
  'optim.schedule': 'cosine',
  'optim.warmup_fraction': 0.1,
  'optim.clip_norm': 1.0,
  'train.batch_size': 128,
  'data.max_length': 1024,
  'data.prompt_max_length': 512,
  'model.init_from': 'models/zephyr-7b-sft-full',
  **ULTRAFEEDBACK,
}
# Lambert et al. 2024, arXiv:2411.15124.
TULU3 = {
  'loss.terms': {'sigmoid_norm': 1.0},
  'loss.beta': 5.0,
  'optim.schedule': 'linear',
  'optim.warmup_fraction': 0.1,
  'train.batch_size': 128,
  'data.max_length': 2048,
  'model.allow_larger_vocab': True,  # its rows are padded to a multiple of 8
}
# Meng et al. 2024, arXiv:2405.14734: gamma is beta times the ratio that the
# authors publish. Lengths as in princeton-nlp/SimPO, training_configs/.
SIMPO = {
  'loss.terms': {'simpo': 1.0},
  'reference.mode': 'none',
  'optim.schedule': 'cosine',
  'optim.warmup_fraction': 0.1,
  'optim.clip_norm': 1.0,
  'train.batch_size': 128,
  'data.max_length': 2048,
  'data.prompt_max_length': 1800,
  **ULTRAFEEDBACK,
}
# A file of comparisons without a held-out part.
OWN_FILE = {'data.eval': 'split', 'data.eval_pairs': 1024}

PRESETS = {
  # As in the paper: helpful and harmless dialogues.
  'dpo_hh': DPO,
  # The released code's learning rate.
  'dpo_hh_code': DPO | {'optim.learning_rate': 5e-7},
  # As in the paper: summaries.
  'dpo_tldr': DPO
  | {
    'loss.beta': 0.5,
    'data.train': 'tfds:tldr_comparisons:train',
    'data.eval': 'tfds:tldr_comparisons:valid1',
    'model.init_from': 'models/gpt-j-6b-tldr-sft',
  },
  # Tunstall et al. 2023, arXiv:2310.16944, section 4; lengths of the recipe.
  'zephyr_7b': HANDBOOK
  | {
    'loss.beta': 0.1,
    'optim.schedule': 'linear',
    'train.batch_size': 32,
    'train.num_epochs': 3.0,
  },
  'zephyr_7b_handbook': HANDBOOK,
  'tulu3_8b': TULU3
  | OWN_FILE
  | {
    'optim.learning_rate': 5e-7,
    'data.train': 'data/tulu-3-8b-preference-mixture.parquet',
    'model.init_from': 'models/Llama-3.1-Tulu-3-8B-SFT',
  },
  'tulu3_70b': TULU3
  | OWN_FILE
  | {
    'optim.learning_rate': 2e-7,
    'data.train': 'data/tulu-3-70b-preference-mixture.parquet',
    'model.init_from': 'models/Llama-3.1-Tulu-3-70B-SFT',
  },
  'simpo_mistral_base': SIMPO
  | {
    'loss.beta': 2.0,
    'loss.gamma': 2.0 * 0.8,
    'optim.learning_rate': 3e-7,
    'data.max_length': 1024,
    'data.prompt_max_length': 512,
    'model.init_from': 'models/zephyr-7b-sft-full',
  },
  # The Instruct settings train on answers of the model itself.
  'simpo_mistral_instruct': SIMPO
  | OWN_FILE
  | {
    'loss.beta': 2.5,
    'loss.gamma': 2.5 * 0.1,
    'optim.learning_rate': 5e-7,
    'data.train': 'data/mistral-instruct-ultrafeedback.parquet',
    'model.init_from': 'models/Mistral-7B-Instruct-v0.2',
  },
  'simpo_llama3_base': SIMPO
  | {
    'loss.beta': 2.0,
    'loss.gamma': 2.0 * 0.5,
    'optim.learning_rate': 6e-7,
    'model.init_from': 'models/Llama-3-Base-8B-SFT',
  },
  'simpo_llama3_instruct': SIMPO
  | OWN_FILE
  | {
    'loss.beta': 2.5,
    'loss.gamma': 2.5 * 0.55,
    'optim.learning_rate': 1e-6,
    'data.train': 'data/llama3-ultrafeedback.parquet',
    'model.init_from': 'models/Meta-Llama-3-8B-Instruct',
  },
  # Weighted mixes of losses, with sources in MIXES of losses/rules.py. Only the
  # mix is published there (MPO's models see images, iterative RPO samples new
  # data): the other settings are the handbook's, with beta 0.1.
  **{
    name: HANDBOOK | {'loss.terms': terms, 'loss.beta': 0.1}
    for name, (terms, _) in loss_rules.MIXES.items()
  },
}


def get_config(arg=''):
  """Arguments: a name of PRESETS (dpo_hh by default), runlocal."""
  names = dict.fromkeys(PRESETS, False)
  args = config_lib.parse_arg(arg, **names, runlocal=False)
  chosen = [name for name in PRESETS if getattr(args, name)] or ['dpo_hh']
  if len(chosen) > 1:
    raise errors.refuse(
      f'config argument {arg!r}',
      f'names {len(chosen)} presets',
      f'name one of {", ".join(chosen)}',
    )
  config = config_lib.base()
  config.data.truncation = 'keep_prompt_end'
  config.model.remat = 'full'
  config.train.num_epochs = 1.0
  config.train.microbatches = 8
  config.train.eval_every = 100
  config.train.save_every = 100
  config.eval.max_comparisons = 1024
  config.mesh.data = 1
  config.mesh.fsdp = -1
  for key, value in PRESETS[chosen[0]].items():
    section, _, name = key.rpartition('.')
    config[section][name] = value
  if args.runlocal:
    config_lib.shrink(config)
    config.mesh.data = -1
    config.mesh.fsdp = 1
  return config
