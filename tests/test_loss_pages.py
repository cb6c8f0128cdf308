"""docs/losses/: one current page and plot per loss and option, and the index.

`python scripts/loss_pages.py` writes the folder. Numbers may differ in their
last digit from one machine to another, all other text may not.
"""

import re

import harness
import numpy as np
import pages
import pytest
from manual import curves, folder, page, reductions, svg

from dpo_jax import config as config_lib
from dpo_jax import losses
from dpo_jax import main as main_lib

FOLDER = pages.ROOT / folder.FOLDER
NAMES = folder.names()
STALE = 'docs/losses is stale; run python scripts/loss_pages.py'
_NUMBER = re.compile(r'-?\d+\.\d+')


def read(name: str) -> str:
  return (FOLDER / name).read_text(encoding='utf-8')


def same(first: str, second: str, atol: float) -> bool:
  """Whether two texts differ in decimal numbers alone, by `atol` at most."""
  if _NUMBER.sub('', first) != _NUMBER.sub('', second):
    return False
  numbers = [np.array(_NUMBER.findall(t), float) for t in (first, second)]
  return np.allclose(*numbers, rtol=1e-3, atol=atol)


def test_there_is_one_page_and_one_plot_per_loss_and_option():
  files = {path.name for path in FOLDER.iterdir()}
  expected = {f'{name}.{end}' for name in NAMES for end in ('md', 'svg')}
  assert files == {folder.INDEX, *expected}, STALE
  number = len(losses.names()) + len(losses.option_names())
  assert sum(name.endswith('.md') for name in files) == number + 1


def test_the_index_is_current():
  assert read(folder.INDEX) == folder.index(), STALE


@pytest.mark.parametrize('name', NAMES)
def test_the_text_of_a_page_is_current(name):
  text = read(f'{name}.md')
  # The section with numbers has a test of its own.
  start = text.index('## Against')
  section = text[start : text.index('\n## The function')].split('\n')[:-1]
  assert text == page.text(name, section), STALE
  assert page.entry(name).formula.split()[0] in text
  # One screen: at most 100 lines of at most 80 columns, tables aside.
  lines = [line for line in text.splitlines() if not line.startswith('|')]
  assert len(lines) <= 100
  assert all(len(line) <= 80 or '](' in line or '`--' in line for line in lines)


def sample() -> list[str]:
  """The first loss of each view, an option of it, one of the reference."""
  first = {}
  for name in NAMES:
    its = page.entry(name)
    is_loss = name in losses.names()
    key = its.view if is_loss else its.changes == 'reference'
    first.setdefault(key, name)
  return list(first.values())


def test_numbers_and_plots_are_current():
  for name in sample():
    section, plot = page.numbers(name)
    old = read(f'{name}.md')
    old = old[old.index('## Against') : old.index('\n## The function')]
    assert same(old, '\n'.join([*section, '']), 2e-3), f'{name}: {STALE}'
    assert same(read(f'{name}.svg'), plot, 0.3), f'{name}: {STALE}'


def test_numbers_by_hand():
  # DPO: -log s(D), and -s(-D) by the chosen reward, its negative by the other.
  (dpo,) = curves.of_loss('sigmoid')
  d = dpo.margin
  np.testing.assert_allclose(dpo.loss, np.log1p(np.exp(-d)), atol=1e-5)
  np.testing.assert_allclose(dpo.chosen, -1 / (1 + np.exp(d)), atol=1e-5)
  np.testing.assert_allclose(dpo.rejected, -dpo.chosen, atol=1e-5)
  # APO-down, of the rewards D/2 and -D/2: s(r_w) + 1 - s(D).
  (apo,) = curves.of_loss('apo_down')
  s, rest = 1 / (1 + np.exp(-d)), 1 / (1 + np.exp(-d / 2))
  np.testing.assert_allclose(apo.loss, rest + 1 - s, atol=1e-5)
  np.testing.assert_allclose(apo.rejected, s * (1 - s), atol=1e-5)
  np.testing.assert_allclose(
    apo.chosen, rest * (1 - rest) - s * (1 - s), atol=1e-5
  )
  # SimPO, beta 2 and gamma 1: D itself is beta times the gap of the means.
  (simpo,) = curves.of_loss('simpo')
  np.testing.assert_allclose(simpo.loss, np.log1p(np.exp(1 - d)), atol=1e-5)
  # The gradients are the slope of the curve: D moves each reward by half.
  for each in (dpo, apo, simpo, *curves.of_option('ld_alpha')):
    slope = np.gradient(each.loss, each.margin)[1:-1]
    half = (each.chosen - each.rejected)[1:-1] / 2
    np.testing.assert_allclose(slope, half, atol=2e-3)


@pytest.mark.parametrize(
  'claim', reductions.REDUCTIONS, ids=lambda c: f'{c.name}-{c.other}'
)
def test_a_loss_is_another_one_where_its_page_says_so(claim):
  scores = {'a_w': (2.0, -1.0, 0.5, 3.0), 'a_l': (-1.0, 0.5, -2.0, 2.5)}
  scores = harness.scores_of(**{**scores, **claim.scores})
  batch = harness.batch_of(**claim.data)
  others = dict(claim.others)
  if claim.name in losses.names():
    first = harness.evaluate(claim.name, scores, batch, **claim.values)
    hyper = {**losses.get(claim.name).hyper, **claim.values}
    shared = losses.get(claim.other).hyper.keys() & hyper.keys()
    others = {**{key: hyper[key] for key in shared}, **others}
  else:
    options = (claim.name,)
    first = harness.evaluate(
      claim.other, scores, batch, options, **claim.values
    )
  second = harness.evaluate(claim.other, scores, batch, **others)
  for x, y in ((first[0], second[0]), (first[1].logps, second[1].logps)):
    np.testing.assert_allclose(x, y, rtol=claim.rtol, atol=1e-7)


def test_every_claim_is_about_something_registered():
  named = {name for c in reductions.REDUCTIONS for name in (c.name, c.other)}
  assert named <= set(NAMES)


def test_links_lead_somewhere():
  for path in FOLDER.glob('*.md'):
    text = path.read_text(encoding='utf-8')
    for target in re.findall(r'\]\(([^)\s]+)\)', pages.prose(text)):
      file, _, anchor = target.partition('#')
      if file.startswith('https://arxiv.org/abs/'):
        continue
      assert (FOLDER / file).exists(), f'{path.name}: {target}'
      if anchor:
        assert anchor in pages.anchors((FOLDER / file).read_text('utf-8'))


def test_the_index_names_every_loss_option_mix_and_preset():
  text = read(folder.INDEX)
  assert all(f']({name}.md)' in text for name in NAMES)
  assert all(f'| {name.upper()} (mix) |' in text for name in losses.MIXES)
  found = re.findall(r'^\| `(\w+)` \|', text, re.MULTILINE)
  assert found == list(folder.preset_module().PRESETS)


def test_the_arguments_of_the_index_choose_the_loss():
  text = read(folder.INDEX)
  rows = re.findall(r'\(([a-z_0-9]+)\.md\).*`(--config.+)` \|$', text, re.M)
  assert sorted(dict(rows)) == sorted(NAMES)
  file = f'{pages.ROOT}/experiments/stories_dpo.py'
  beside = {'nll', 'sft', *losses.option_names()}
  for name, words in rows:
    given = [
      word.removeprefix('--config.').split('=') for word in words.split()
    ]
    config = config_lib.load(file, list(main_lib._with_values(given)))
    config_lib.validate(config)
    terms = config_lib.loss_terms(config)
    chosen = {*terms, *config_lib.loss_options(config)}
    assert chosen == {name, *({'sigmoid'} if name in beside else ())}, words
    hyper = config_lib.loss_hyper(config)
    if name not in beside:
      default = losses.get(name).hyper.get('beta')
      assert config.loss.beta == default or name == 'sigmoid', hyper


def test_ticks_are_round_and_enclose():
  assert svg.ticks(0, 4.02) == [0, 1, 2, 3, 4, 5]
  assert svg.ticks(-4, 4) == [-4, -2, 0, 2, 4]
  assert svg.ticks(0.0, 0.0)[0] <= 0 < svg.ticks(0.0, 0.0)[-1]
  for low, high in ((-7.3, 0.01), (1e-3, 2e-3), (3, 2100)):
    values = svg.ticks(low, high)
    assert len(values) <= svg.NUM_TICKS + 2
    slack = 0.011 * (values[1] - values[0])  # rounding adds no tick
    assert values[0] <= low + slack and values[-1] >= high - slack
