"""Which losses differ from DPO, all else being equal?

Question: every registered loss that these pairs can train, each at the usual
grid of the registry, with 3 seeds, on the model and the pairs of
`stories_dpo.py`: held-out accuracy, KL and log-probabilities against DPO's.
Command (46 compiles, one pass of the reference, 420 runs):
  python -m dpo_jax.main --mode=sweep --workdir=runs/ablate_loss \
    --config=experiments/ablate_loss.py
  --config=experiments/ablate_loss.py:short --sweep.name=short is what
  docs/results/ shows: every loss at its default alone, 24 updates of 16
  comparisons and 256 held out, in place of 90 of 32 and 512
Left out (LEFT_OUT says why): `qrpo`, for lack of scores of the reference's own
answers, and `sft`, which is `nll` under another name. Options (f-DPO, WPO, ...)
are no losses, and are left out too.
Hardware: 2 CPU cores, about eight hours; with `short` 32 CPU-minutes.
Expected: with `short` DPO ends at accuracy 0.632 and KL 8.1 nats, and no loss
differs from it in accuracy after Holm (docs/results/ablate_loss.md).
"""

import pathlib

from dpo_jax import config as config_lib
from dpo_jax.losses import catalogue
from dpo_jax.losses import rules as loss_rules

STORIES = pathlib.Path(__file__).with_name('stories_dpo.py')
LEFT_OUT = {
  'qrpo': 'needs scores of answers that the reference wrote to each prompt',
  'sft': 'is nll under another name',
}
# The best known ones come first: a sweep that is stopped has those.
FIRST = ('sigmoid', 'ipo', 'hinge', 'kto', 'simpo', 'orpo', 'cpo', 'slic_hf')
LOSSES = {
  name: loss
  for name, loss in sorted(
    catalogue.read().items(), key=lambda item: item[0] not in FIRST
  )
  if name not in LEFT_OUT
}


def get_config(arg=''):
  """Arguments: loss=NAME, short (a tenth of the cost), runlocal (two steps)."""
  args = config_lib.parse_arg(arg, loss='sigmoid', short=False, runlocal=False)
  config = config_lib.load(f'{STORIES}:loss={args.loss}')
  config.loss.beta = None  # each loss has its own default
  config.reference.mode = reference_mode(args.loss)
  # As in ablate_beta.py, so that DPO is the same run in both.
  config.optim.learning_rate = 2e-4
  config.train.eval_every = 30
  if args.short:
    config.data.eval_pairs = 256
    config.train.num_steps = 24
    config.train.batch_size = 16
    config.train.eval_every = 0
  config.train.save_every = config.train.num_steps
  if args.runlocal:
    config_lib.shrink(config)
  return config


def reference_mode(name):
  """The cheapest kind of reference that serves a loss."""
  needs = catalogue.read()[name].needs if name in catalogue.read() else ()
  if 'reference' not in needs:
    return 'none'
  return 'params' if loss_rules.why_not_cached(needs) else 'cache'


def sweep():
  """Every loss at every value of its usual grid, with three seeds each."""
  for name, loss in LOSSES.items():
    grid = {f'loss.{key}': values for key, values in loss.grid.items()}
    yield from config_lib.product(
      {'arg': [f'loss={name}']}, grid, {'seed': range(3)}
    )


def sweep_short():
  """Every loss at its default, with three seeds each."""
  for name in LOSSES:
    for seed in range(3):
      yield f'loss={name}', {'seed': seed}
