"""Does DPO reach the reward that labelled a real model's own samples?

Question: stories260K, a 260k-parameter Llama, on 6,795 pairs of its own
samples labelled by a lexicon reward; 512 comparisons held out by prompt.
Command:
  python -m dpo_jax.main --config=experiments/stories_dpo.py \
    --workdir=runs/stories_dpo
  --config=experiments/stories_dpo.py:loss=ipo trains by another loss;
  --config.data.train=FILE.jsonl.gz --config.model.init_from=FOLDER your own
Hardware: 2 CPU cores, about a minute (70 CPU-seconds).
Expected: loss 0.693 before the first update; at update 90 held-out accuracy
0.861 and loss 0.334 (this command, seed 0). A plain PyTorch loop reached 0.848
and 0.375 in 87. A linear decay to 0 ends at 0.813 and 0.420: 90 updates are
less than half a pass, too few for a decay.
"""

from dpo_jax import config as config_lib

DATA = '../shared/data/prefs/stories_lexicon.jsonl.gz'
MODEL = '../shared/data/models/stories260K'


def get_config(arg=''):
  """Arguments: loss=NAME, runlocal (synthetic, random weights, two steps)."""
  args = config_lib.parse_arg(arg, loss='sigmoid', runlocal=False)
  config = config_lib.base()
  config.data.train = DATA
  config.data.eval_pairs = 512
  config.data.use_token_ids = True  # the pairs are the model's own samples
  config.data.max_length = 128
  config.data.row_length = 160  # one prompt of 24 with two answers of 64
  config.model.init_from = MODEL
  config.loss.terms = {args.loss: 1.0}
  config.loss.beta = 0.1
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
  """Two losses at three betas, with three seeds each."""
  for loss in ('sigmoid', 'ipo'):
    for beta in (0.05, 0.1, 0.3):
      for seed in range(3):
        yield f'loss={loss}', {'loss.beta': beta, 'seed': seed}
