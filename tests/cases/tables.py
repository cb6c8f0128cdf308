"""Cases of the tables: differences, weights, seeds, prompts, coverage."""

import json
import math
import pathlib

import numpy as np
from cases.case import Case
from results import coverage

from dpo_jax.results import cells, collect, options, statistics, tables

DIFFERENCES = 'differences between rows'
INTERVALS = 'what an interval covers'
TEXTS = 'what a table says'
NAMES = ('rewards/accuracies', 'rewards/margins')


def write_run(path, loss, arrays, *, seed=0, weight=None, metrics=None):
  """A run whose evaluation reports the weighted means of these arrays."""
  num = len(next(iter(arrays.values())))
  weight = np.ones(num) if weight is None else weight
  wins = arrays['reward_chosen'] > arrays['reward_rejected']
  margins = arrays['reward_chosen'] - arrays['reward_rejected']
  each = dict(zip(NAMES, (wins, margins)))
  means = {k: float(np.average(v, weights=weight)) for k, v in each.items()}
  end = {'loss': 0.5, **means} if metrics is None else metrics
  (path / 'per_example').mkdir(parents=True)
  config = {'stage': 'dpo', 'seed': seed, 'loss': loss}
  (path / 'config.json').write_text(json.dumps(config))
  lines = [{'step': step, 'split': 'eval', **end} for step in (0, 10)]
  text = ''.join(json.dumps(line) + '\n' for line in lines)
  (path / 'metrics.jsonl').write_text(text)
  ids = {
    'uid': [f'{i:016x}' for i in range(num)],
    'prompt_id': [f'{i:032x}' for i in range(num)],
  }
  arrays = ids | {'weight': weight} | arrays
  np.savez(path / 'per_example/eval_10.npz', **arrays)
  (path / 'DONE').touch()


def shown(folder: pathlib.Path) -> cells.Table:
  return cells.make_table(collect.collect(sorted(folder.iterdir())))


def differences(folder: pathlib.Path) -> str:
  """The means of the differences, as 'accuracy +0.250, margin +0.500'."""
  return ', '.join(
    f'{each.metric} {each.interval.mean:+.3f}'
    for each in shown(folder).differences
  )


# Eight comparisons. Log-ratios of DPO, whose longer answers lose, and
# log-probabilities of 10 and of 40 tokens.
LOG_RATIOS = np.array(
  [[4.0, 6, -2, 8, 3, -5, 2, 0], [2.0, 9, 1, 3, 5, -1, 0, 9]]
)
LOGPS = -np.array(
  [[10.0, 12, 9, 11, 8, 20, 14, 10], [60, 52, 48, 44, 72, 64, 36, 40]]
)
TOKENS = np.array([[10] * 8, [40] * 8])


def rewards(values) -> dict[str, np.ndarray]:
  return {'reward_chosen': values[0], 'reward_rejected': values[1]}


def saved(values, *, policy=LOGPS, reference=None) -> dict[str, np.ndarray]:
  """The arrays of a run: its rewards beside sums that are none."""
  arrays = rewards(values)
  reference = np.zeros_like(policy) if reference is None else reference
  for i, side in enumerate(('chosen', 'rejected')):
    arrays[f'policy_{side}'] = policy[i]
    arrays[f'reference_{side}'] = reference[i]
    arrays[f'{side}_tokens'] = TOKENS[i]
  return arrays


def against_dpo(name: str, values):
  """The differences of a loss from DPO at beta .1."""

  def ours(folder: pathlib.Path) -> str:
    dpo = saved(0.1 * LOG_RATIOS, policy=LOG_RATIOS)
    write_run(folder / '0', {'terms': {'sigmoid': 1.0}}, dpo)
    write_run(folder / '1', {'terms': {name: 1.0}}, saved(values))
    return differences(folder)

  return ours


def weighted(folder: pathlib.Path) -> str:
  # The first quarter, of weight 4, gains 2; the others, of .25, lose 1.
  weight = np.repeat([4.0, 0.25], [2, 6])
  gain = np.repeat([2.0, -1.0], [2, 6])
  base = np.array([-1.0, -1, 0.5, 0.5, 0.5, 3, 3, 3])
  for i, margin in enumerate((base, base + gain)):
    loss = {'terms': {'sigmoid': 1.0}, 'beta': 0.1 + i}
    arrays = rewards((margin, np.zeros(8)))
    write_run(folder / str(i), loss, arrays, weight=weight)
  return differences(folder)


def three_seeds(folder: pathlib.Path) -> str:
  # Every comparison of a seed has the same gain; 100 comparisons would tell
  # the difference of these six runs exactly.
  for i, moves in enumerate(((0.0, 2.0, -2.0), (1.5, -0.5, 2.0))):
    for seed, move in enumerate(moves):
      margin = 10 + move + np.linspace(-1, 1, 100)
      write_run(
        folder / f'{i}{seed}',
        {'terms': {'sigmoid': 1.0}, 'beta': 0.1 + i},
        rewards((margin, np.zeros(100))),
        seed=seed,
      )
  (margin,) = (
    each for each in shown(folder).differences if each.metric == 'margin'
  )
  half = margin.interval.high - margin.interval.mean
  return f'margin {margin.interval.mean:+.3f} ± {half:.3f} over {margin.over}'


def one_seed(folder: pathlib.Path) -> str:
  rng = np.random.default_rng(0)
  for i in range(2):
    loss = {'terms': {'sigmoid': 1.0}, 'beta': 0.1 + i}
    arrays = rewards((rng.normal(size=40), np.zeros(40)))
    write_run(folder / str(i), loss, arrays)
  notes = tables.notes(shown(folder), folder)
  (note,) = (n for n in notes if n.startswith('Differences with'))
  return note


def prompts(folder: pathlib.Path) -> str:
  rng = np.random.default_rng(0)
  for i in range(2):
    loss = {'terms': {'sigmoid': 1.0}, 'beta': 0.1 + i}
    arrays = rewards((rng.normal(size=200), np.zeros(200)))
    ids = {'prompt_id': [f'{j // 4:032x}' for j in range(200)]}
    write_run(folder / str(i), loss, arrays | ids)
  table = shown(folder)
  counts = {each.interval.num for each in table.differences}
  counts |= {row.cells['margin', 'after'].num for row in table.rows}
  return f'{counts} prompts'


def covers(*settings, draws=1500):
  """Whether the settings' mean coverage lies within their bounds."""

  def ours(folder: pathlib.Path) -> str:
    del folder
    share = np.mean([coverage.coverage(each, draws) for each in settings])
    low, high = settings[0].bounds
    return str(bool(low <= share <= high))

  return ours


def all_hits(folder: pathlib.Path) -> str:
  del folder
  got = statistics.clustered_share(np.ones(40), np.repeat(np.arange(10), 4))
  # Wilson's lower end of 10 of 10: n / (n + z^2).
  return str(math.isclose(got.low, 10 / (10 + 1.959964**2), rel_tol=1e-6))


def one_label(folder: pathlib.Path) -> str:
  end = {'loss': 0.5, 'rewards/chosen': 1.0}
  write_run(folder / 'a', {}, rewards(np.zeros((2, 4))), metrics=end)
  names = ['rewards/chosen', 'rewards/rejected', 'rewards/accuracies']
  table = cells.make_table(
    collect.collect([folder]), options.Options(metrics=tuple(names))
  )
  line = tables.markdown(table, folder).splitlines()[2]
  return ' '.join(part.strip() for part in line.split('|')[4:-1])


def sign_of_kl(folder: pathlib.Path) -> str:
  # Both answers are e times as likely as under the reference.
  more = saved(np.zeros((2, 8)), reference=LOGPS - 1)
  end = {'loss': 0.5, 'kl': -1.0}
  write_run(folder / 'a', {}, more, metrics=end)
  table = shown(folder)
  value = table.rows[0].cells['KL', 'after'].value
  (note,) = (n for n in tables.notes(table, folder) if n.startswith('KL'))
  return f'{value}, {note.partition("nats, ")[2].partition(";")[0]}'


MEANS = LOGPS / TOKENS
# DPO wins 3 of 8, by .1 (16 - 28) / 8 = -.15; the mean log-probabilities win 4
# of 8 and tie twice, by (10.4 - 9.4) / 8 = .125.
CASES = [
  Case(
    DIFFERENCES,
    'SimPO minus DPO on 8 comparisons, reward 2 log pi / length',
    'accuracy +0.125, margin +0.400',
    against_dpo('simpo', 2 * MEANS),
  ),
  Case(
    DIFFERENCES,
    'ORPO minus DPO, reward log pi / length',
    'accuracy +0.125, margin +0.275',
    against_dpo('orpo', MEANS),
  ),
  Case(
    DIFFERENCES,
    'AlphaPO minus DPO, reward 2 (1 - p^-1), p = exp(log pi / length)',
    # 2 / 8 (sum exp(1.5, 1.3, 1.2, 1.1, 1.8, 1.6, .9, 1) - sum exp(1, 1.2, .9,
    # 1.1, .8, 2, 1.4, 1)) = (30.656 - 27.890) / 4 = .691, + .15
    'accuracy +0.125, margin +0.841',
    against_dpo('alphapo', 2 * -np.expm1(-MEANS)),
  ),
  Case(
    DIFFERENCES,
    'KTO minus DPO, reward .5 log-ratio of the same answers',
    # The same wins; -.75 + .15.
    'accuracy +0.000, margin -0.600',
    against_dpo('kto', 0.5 * LOG_RATIOS),
  ),
  Case(
    DIFFERENCES,
    'weights 4, 4 and six of .25; those of 4 gain 2, the others lose 1',
    # (2 x 4 x 2 - 6 x .25) / 9.5; wins 8.75 / 9.5 less 1.5 / 9.5.
    'accuracy +0.763, margin +1.526',
    weighted,
  ),
  Case(
    INTERVALS,
    'two rows of three seeds whose seeds gain 1.5, -2.5 and 4',
    # Student's paired t: 4.302653 x sqrt(10.75 / 3).
    'margin +1.000 ± 8.145 over seeds and prompts',
    three_seeds,
  ),
  Case(
    INTERVALS,
    'two rows of one seed',
    'Differences with a row of one seed: ± is half of the 95 % interval over '
    'evaluation prompts (clustered); it does not cover the seed.',
    one_seed,
  ),
  Case(
    INTERVALS,
    '200 records of 50 prompts',
    '{50} prompts',
    prompts,
  ),
  Case(
    INTERVALS,
    '64 prompts of 8 rows, correlation .3: coverage .94 to .96',
    'True',
    covers(coverage.over_prompts(64, '8', 0.3)),
  ),
  Case(
    INTERVALS,
    '20, 40 and 100 prompts of 1 to 6 fully dependent answers: a share covers '
    '.94 to .96',
    'True',
    covers(*(coverage.shares(num, '1 to 6', 1) for num in (20, 40, 100))),
  ),
  Case(
    INTERVALS,
    '3 seeds of which half of the variance is: coverage .93 to .98',
    'True',
    covers(coverage.seeds((3, 3), 40, 'one', 0.5, 0.1), draws=1000),
  ),
  Case(
    INTERVALS,
    '40 wins of 10 prompts count as 10',
    'True',
    all_hits,
  ),
  Case(
    TEXTS,
    'chosen, rejected rewards and accuracy of data with one label',
    '1.000 - -',
    one_label,
  ),
  Case(
    TEXTS,
    'KL of a policy that made both answers e times as likely',
    '-1.0, negative if the policy made them more likely',
    sign_of_kl,
  ),
]
