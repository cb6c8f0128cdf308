"""Which beta is best for DPO, and by which measure?

Question: DPO (`sigmoid`) at 12 betas over nearly three decades with 5 seeds
each, on the model and the pairs of `stories_dpo.py`: held-out accuracy, margin,
KL and log-probabilities against beta, with intervals over seeds.
Command (one compile, one pass of the reference, 60 runs):
  python -m dpo_jax.main --mode=sweep --workdir=runs/ablate_beta \
    --config=experiments/ablate_beta.py
  --config=experiments/ablate_beta.py:short is what docs/results/ shows: 32
  updates of 16 comparisons and 256 held out, in place of 90 of 32 and 512
Hardware: 2 CPU cores, about an hour; with `short` 11 CPU-minutes.
Expected: with `short` the held-out loss is lowest at beta 0.2 (0.595), accuracy
is 0.64 to 0.67 at every beta, and KL falls from 17.5 nats at 0.01 to 3.1 at 5.
docs/results/ablate_beta.md has intervals and figures.
"""

import pathlib

from dpo_jax import config as config_lib

STORIES = pathlib.Path(__file__).with_name('stories_dpo.py')
BETAS = (0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 3.0, 5.0)


def get_config(arg=''):
  """Arguments: short (an eighth of the cost), runlocal (two steps)."""
  args = config_lib.parse_arg(arg, short=False, runlocal=False)
  config = config_lib.load(str(STORIES))
  config.reference.mode = 'cache'
  # Below that of stories_dpo.py, at which betas above 1 overshoot.
  config.optim.learning_rate = 2e-4
  config.train.eval_every = 30
  if args.short:
    config.data.eval_pairs = 256
    config.train.num_steps = 32
    config.train.batch_size = 16
    config.train.eval_every = 16
  config.train.save_every = config.train.num_steps
  if args.runlocal:
    config_lib.shrink(config)
  return config


def sweep():
  """Twelve betas with five seeds each."""
  return config_lib.product({'loss.beta': BETAS, 'seed': range(5)})


def sweep_few():
  """Four betas with three seeds each."""
  return config_lib.product({'loss.beta': BETAS[::3], 'seed': range(3)})
