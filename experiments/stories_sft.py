"""How far does imitating the better stories go, without comparisons?

Question: the 260k-parameter story model after SFT on the chosen half of
`stories_lexicon`, the baseline of `stories_dpo.py`.
Command:
  python -m dpo_jax.main --config=experiments/stories_sft.py \
    --workdir=runs/stories_sft
Hardware: 2 CPU cores, about two minutes.
Expected: the held-out loss in nats per token falls. The gain in preference
accuracy is far below DPO's. To see it, read the evaluation at step 0 of this
command: it scores the SFT model with the original model as reference.
  python -m dpo_jax.main --config=experiments/stories_dpo.py \
    --workdir=runs/stories_sft_dpo --config.model.init_from=runs/stories_sft \
    --config.reference.init_from=../shared/data/models/stories260K
"""

from dpo_jax import config as config_lib

DATA = '../shared/data/prefs/stories_lexicon.jsonl.gz'
MODEL = '../shared/data/models/stories260K'


def get_config(arg=''):
  """Arguments: runlocal (synthetic text, random weights, two steps)."""
  args = config_lib.parse_arg(arg, runlocal=False)
  config = config_lib.base()
  config.stage = 'sft'
  config.data.train = DATA
  config.data.eval_pairs = 512
  config.data.use_token_ids = True  # the pairs are the model's own samples
  config.data.max_length = 128
  config.data.row_length = 256
  config.model.init_from = MODEL
  config.reference.mode = 'none'
  config.loss.terms = {'nll': 1.0}
  config.optim.learning_rate = 5e-4
  config.optim.schedule = 'constant'
  config.optim.warmup_steps = 5
  config.train.num_steps = 90
  config.train.batch_size = 32
  config.train.eval_every = 30
  config.train.save_every = 30
  if args.runlocal:
    config_lib.shrink(config)
  return config


def sweep():
  """Four learning rates over a decade."""
  for learning_rate in (1e-4, 2e-4, 5e-4, 1e-3):
    yield '', {'optim.learning_rate': learning_rate}
