"""Does DPO learn the preference in your own pairs?

Question: pairs of your own, with lengths that follow from them. A row holds as
many tokens as 95 % of the records need, 5 % of the comparisons are held out by
prompt, and one line says how many pairs are cut.
Command:
  python -m dpo_jax.main --workdir=runs/mine \
    --config=experiments/your_pairs.py:data=FILE,model=FOLDER
  No comma may be in these names. tokenizer=FOLDER and template=FILE.jinja go
  with them; keys as always (--config.loss.beta=0.3). Look at the data first:
  the same with --mode=show, and at the memory: with --mode=plan.
Hardware: as the model needs. Without data and model, on synthetic pairs and a
tiny random model, 2 CPU cores, about two minutes.
Expected: held-out accuracy above 0.5. The learning rate is that of papers for
models of 1 to 8 billion parameters; smaller ones need more, and the held-out
loss says how much (`sweep`). Of HH's 1,839 harmless pairs with stories260K,
whose
tokens are short, 554 are cut at the model's 512 positions; with GPT-2's
tokenizer 80 are, at 480.
"""

from dpo_jax import config as config_lib
from dpo_jax.run import lengths

SHARE = 0.95  # of the records that are not cut
HELD_OUT = 0.05  # of the comparisons


def get_config(arg=''):
  """Arguments: data=FILE, model=FOLDER, tokenizer=, template=, runlocal."""
  args = config_lib.parse_arg(
    arg, data='synthetic', model='', tokenizer='', template='', runlocal=False
  )
  config = config_lib.base()
  config.data.train = args.data
  config.data.chat_template = args.template
  config.data.truncation = 'keep_prompt_end'
  config.model.init_from = args.model
  config.tokenizer = args.tokenizer
  if not args.model:  # a random model, to see the commands work
    config.model.preset = 'tiny'
    config.tokenizer = args.tokenizer or 'byte'
  config.loss.terms = {'sigmoid': 1.0}
  config.loss.beta = 0.1
  config.optim.learning_rate = 1e-6
  config.optim.warmup_fraction = 0.1
  config.optim.clip_norm = 1.0
  if args.runlocal:
    config_lib.shrink(config)
  else:
    fit(config)
  return config


def fit(config):
  """Sets lengths, held-out pairs and batch size by what the data holds."""
  data = lengths.measure(config)
  limit = round_up(data.quantile(SHARE))
  if 0 < data.max_positions < limit:
    limit = data.max_positions
    print(f'your pairs: the model was trained on texts of {limit:,} tokens')
  config.data.max_length = limit
  # A row holds a prompt once, with all its answers.
  config.data.row_length = max(limit, round_up(data.row(SHARE, limit)))
  held_out = max(1, round(HELD_OUT * data.num_comparisons))
  config.data.eval_pairs = held_out
  # Sixteen updates or more, if the data is that large.
  trained = max(1, data.num_records - held_out)
  size = 32
  while size > 1 and size * 16 > trained:
    size //= 2
  config.train.batch_size = size
  config.train.num_steps = max(1, trained // size)  # one pass
  config.train.eval_every = max(1, config.train.num_steps // 4)
  config.train.save_every = config.train.eval_every
  cut, num = data.num_longer(limit), len(data.longest)
  of_all = '' if num == data.num_records else f' (of {data.num_records:,})'
  print(
    f'your pairs: {num:,} records{of_all}; prompt and longest answer have '
    f'{data.quantile(0.5):,} tokens (median), {data.quantile(SHARE):,} '
    f'({SHARE:.0%}), {data.quantile(1):,} (longest)'
  )
  print(
    f'your pairs: data.max_length {limit:,} cuts {cut:,} of {num:,} pairs '
    f'({cut / num:.1%}); {held_out:,} comparisons are held out'
  )


def round_up(tokens, multiple=32):
  """The next multiple, of which programs are faster and fewer."""
  return max(multiple, -(-tokens // multiple) * multiple)


def sweep():
  """Learning rates, for the least held-out loss."""
  for rate in (3e-7, 1e-6, 3e-6, 1e-5, 1e-4):
    yield '', {'optim.learning_rate': rate}
