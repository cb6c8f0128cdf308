"""What does DPO gain on Anthropic HH with the paper's settings?

Question: DPO of a 2.8B model after SFT on the chosen answers, with the
settings of Rafailov et al. 2023 (arXiv:2305.18290, appendix B): beta 0.1,
batches of 64, RMSprop, learning rate 1e-6, constant after 150 steps of linear
warm-up. The 512 tokens and the one epoch are those of the authors' released
code, which uses learning rate 5e-7.
Command:
  python -m dpo_jax.main --config=experiments/hh_dpo.py \
    --workdir=runs/hh_dpo --config.model.init_from=SFT_FOLDER
Hardware: 8 accelerators of 80 GB, about 3 hours (an estimate, not a run).
Expected: loss 0.693 before the first update. The full setting was not run here,
so no other number is claimed; the paper's result is a win rate judged by GPT-4
(figure 3).
"""

from dpo_jax import config as config_lib


def get_config(arg=''):
  """Arguments: loss=NAME, runlocal (synthetic, random weights, two steps)."""
  args = config_lib.parse_arg(arg, loss='sigmoid', runlocal=False)
  config = config_lib.base()
  config.data.train = 'tfds:hh_rlhf:train'  # helpful and harmless
  config.data.eval = 'tfds:hh_rlhf:test'
  config.data.max_length = 512
  config.data.prompt_max_length = 256
  config.data.truncation = 'keep_prompt_end'
  config.model.init_from = 'models/pythia-2.8b-sft'
  config.model.allow_larger_vocab = True  # its rows are padded to 50,304
  config.model.remat = 'full'
  config.loss.terms = {args.loss: 1.0}
  config.loss.beta = 0.1
  config.optim.name = 'rmsprop'
  config.optim.b2 = 0.99  # torch's default, which the authors' code uses
  config.optim.learning_rate = 1e-6
  config.optim.schedule = 'constant'
  config.optim.warmup_steps = 150
  config.optim.clip_norm = 10.0
  config.train.num_epochs = 1.0
  config.train.batch_size = 64
  config.train.microbatches = 2
  config.eval.max_comparisons = 1024
  config.train.eval_every = 312  # about 20,000 comparisons, as in their code
  config.train.save_every = 312
  config.mesh.data = 1
  config.mesh.fsdp = -1
  if args.runlocal:
    config_lib.shrink(config)
    config.mesh.data = -1
    config.mesh.fsdp = 1
  return config


def sweep():
  """The betas of the paper's figure 2 (drawn there for IMDb)."""
  for beta in (0.05, 0.1, 1.0, 5.0):
    yield '', {'loss.beta': beta}
