"""How much of a known reward does a loss buy per nat of KL?

Question: stories260K, a 260k-parameter Llama, learns from 6,283 pairs of its
own samples that a lexicon labelled. The reward of what it then writes is
known, and so is its KL to where it started: which loss gets more reward at
equal KL, and how far does each beta go?
Command:
  python -m dpo_jax.main --mode=sweep --config=experiments/frontier_stories.py \
    --workdir=runs/frontier --sweep.name=small
  python -m dpo_jax.main --mode=frontier --workdir=runs/frontier \
    --rewards=lexicon --steps=0,25,50,75
  without --sweep.name=small: five losses x three betas x five seeds
Hardware: 2 CPU cores, about a minute per run.
Expected: reward against KL on or above what a plain PyTorch loop of DPO gave,
(KL, reward) = (4.7, 2.49), (9.0, 3.58), (13.5, 4.58) after 25, 50 and 75
updates at beta 0.1, and (1.5, 1.66), (2.0, 1.95), (2.5, 2.18) at beta 1; the
model before training has 0.55 to 0.65 (docs/results/frontier.md has ours).
"""

import pathlib

from dpo_jax import config as config_lib

STORIES = pathlib.Path(__file__).with_name('stories_dpo.py')
BETAS = (0.1, 0.3, 1.0)
# SimPO's beta multiplies a mean per token, not a sum: other values are usual.
LOSSES = {
  'sigmoid': BETAS,
  'ipo': BETAS,
  'simpo': (2.0, 5.0, 10.0),
  'hinge': BETAS,
  'apo_zero': BETAS,
}


def get_config(arg=''):
  """Arguments: loss=NAME, runlocal (synthetic, random weights, two steps)."""
  args = config_lib.parse_arg(arg, loss='sigmoid', runlocal=False)
  config = config_lib.load(f'{STORIES}:loss={args.loss}')
  # SimPO reads no reference while it trains; --mode=frontier measures the KL
  # to the model that the run started from.
  config.reference.mode = 'none' if args.loss == 'simpo' else 'cache'
  config.loss.beta = LOSSES.get(args.loss, BETAS)[0]
  config.optim.learning_rate = 1e-4
  # As the plain loop: neither warm-up, decay nor clipping.
  config.optim.warmup_steps = 0
  config.train.num_steps = 75
  config.train.eval_every = 25
  config.train.save_every = 25
  config.train.keep_checkpoints = 4
  config.sample.max_new_tokens = 64  # the length of the data's answers
  config.sample.batch_size = 256
  if args.runlocal:
    config_lib.shrink(config)
  return config


def sweep():
  """Five losses at three betas, with five seeds each."""
  return _points(LOSSES)


def sweep_small():
  """Three losses at their least and greatest beta, with five seeds each."""
  return _points(
    {loss: LOSSES[loss][::2] for loss in ('sigmoid', 'ipo', 'simpo')}
  )


def _points(betas):
  return config_lib.chain(
    *(
      config_lib.product(
        {'arg': [f'loss={loss}'], 'loss.beta': values, 'seed': range(5)}
      )
      for loss, values in betas.items()
    )
  )
