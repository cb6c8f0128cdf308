"""All files of docs/losses/: the pages, their plots and the index.

Comes in: the registry, the published mixes and the presets of
experiments/paper_presets.py. Goes out: {file name: text}.
"""

import importlib.util
import pathlib
import re
import types
from collections.abc import Iterable

from manual import curves, page, source

from dpo_jax import losses

ROOT = pathlib.Path(__file__).resolve().parents[2]
FOLDER = 'docs/losses'
INDEX = 'README.md'
_PRESETS = 'experiments/paper_presets.py'

_HEAD = """# Losses: one page each

`python scripts/loss_pages.py` writes this folder from the registry, and
`tests/test_loss_pages.py` fails if it is stale. Notation and needs are
explained in [losses.md](../losses.md).
"""
_EXAMPLE = f"""
Every page evaluates the real objective, with default hyper-parameters, on one
comparison: answers of {curves.TOKENS[0]:g} (chosen) and {curves.TOKENS[1]:g}
tokens, each with a log-probability of {curves.LOGP:g} nats under the reference;
data scores {curves.SCORES[0]:g} and {curves.SCORES[1]:g}, whose quantiles among
the reference's own answers are {curves.QUANTILES[0]:g} and
{curves.QUANTILES[1]:g}; a data margin of {curves.MARGIN:g}; sums of
KL(ref, pi) of {curves.KL[0]:g} and {curves.KL[1]:g} nats; a baseline of 0 from
mismatched answers; running means after {curves.NUM_BATCHES} batches at D = 0,
and this one. `tests/manual/curves.py` has the rest. D moves by the policy's
log-probabilities: the chosen reward is D/2 above the mean of both, the rejected
one D/2 below. `d loss / d r_w` and `d loss / d r_l` are the gradients by the
two rewards, so a negative number raises that answer. Losses of labelled
completions read the two as a desirable and an undesirable answer, losses of
lists as the two answers to a prompt.
"""
_CONFIGS = """## Which paper, which config

The arguments choose the loss, with its own default beta, in the files of
`experiments/`, whose own term is `sigmoid` with beta 0.1. Usual values are the
grid of the registry, or the default.
"""
_RECIPES = """## Published settings

The settings of a paper or of its released recipe, as presets:
`--config=experiments/paper_presets.py:NAME`. The file says where each number is
from. None was run here at full size, so no result is claimed.
"""


def files(chosen: Iterable[str]) -> dict[str, str]:
  """{file name: text} of the index and of the chosen losses and options."""
  texts = {INDEX: index()}
  for name in chosen:
    written = page.write(name)
    texts |= {f'{name}.md': written.text, f'{name}.svg': written.plot}
  return texts


def names() -> tuple[str, ...]:
  """All losses, then all options."""
  return (*losses.names(), *losses.option_names())


def index() -> str:
  """The text of the index."""
  lines = [_HEAD, _count(), '', _CONFIGS, *_configs(), '', _RECIPES]
  example = source.wrap(' '.join(_EXAMPLE.split()))
  lines += [*presets(), '', '## The example', '', *example, '']
  return '\n'.join(lines)


def presets() -> list[str]:
  """Table of the presets of experiments/paper_presets.py."""
  module = preset_module()
  head = ('preset', 'loss', 'optimizer', 'batch', 'passes', 'tokens')
  rows = [
    _preset(name, module.get_config(name), changed)
    for name, changed in module.PRESETS.items()
  ]
  return page.table([head, *rows])


def preset_module() -> types.ModuleType:
  """experiments/paper_presets.py, which no import reaches."""
  spec = importlib.util.spec_from_file_location('presets', ROOT / _PRESETS)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def _count() -> str:
  return (
    f'{len(losses.names())} losses and {len(losses.option_names())} options.'
  )


def _configs() -> list[str]:
  """Table of papers: losses, options, mixes, and names of other trainers."""
  rows = []
  for name in names():
    entry = page.entry(name)
    kind = '' if name in losses.names() else ' (option)'
    label = f'[{entry.label}]({name}.md){kind}'
    rows.append((label, entry.paper, page.flags(name), _usual(entry)))
    if name == 'sigmoid':
      smoothed = f'{page.flags(name)} --config.loss.label_smoothing=0.1'
      paper = 'Mitchell 2023, ericmitchell.ai/cdpo.pdf'
      rows.append(
        (f'[cDPO]({name}.md)', paper, smoothed, 'label_smoothing 0.1')
      )
  for name, (terms, paper) in losses.MIXES.items():
    words = [f'--config.loss.terms.{term}={w:g}' for term, w in terms.items()]
    rows.append((f'{name.upper()} (mix)', paper, ' '.join(words), '-'))
  rows.sort(key=lambda row: (_year(row[1]), row[0].lower()))
  head = ('name', 'paper', 'usual values', 'arguments')
  cells = [
    (name, page.link(paper), usual, f'`{words}`')
    for name, paper, words, usual in rows
  ]
  return page.table([head, *cells])


def _usual(entry) -> str:
  """The usual grid of each hyper-parameter, or its default."""
  grid = getattr(entry, 'grid', {})
  return (
    '; '.join(
      f'{key} {", ".join(f"{v:g}" for v in grid.get(key, (value,)))}'
      for key, value in entry.hyper.items()
    )
    or '-'
  )


def _year(paper: str) -> str:
  """The number by which papers are sorted: that of arXiv, else the year."""
  number = re.search(r'arXiv:(\d{4})\.(\d{5})', paper)
  if number:
    return f'20{number[1]}.{number[2]}'
  year = re.search(r'20\d\d', paper)
  return year[0] if year else ''


def _preset(name: str, config, changed) -> tuple[str, ...]:
  """The row of one preset."""
  terms = [
    f'{weight:g} ' * (weight != 1) + f'[{term}]({term}.md)'
    for term, weight in config.loss.terms.items()
  ]
  hyper = [
    f'{key.removeprefix("loss.")} {value:g}'
    for key, value in changed.items()
    if key.startswith('loss.') and key != 'loss.terms'
  ]
  optim, data = config.optim, config.data
  warmup = f'{optim.warmup_steps} steps'
  if optim.warmup_fraction:
    warmup = f'{optim.warmup_fraction:g} of the run'
  schedule = f'{optim.schedule}, warm-up {warmup}'
  tokens = f'{data.max_length:,}'
  if data.prompt_max_length:
    tokens += f', prompts {data.prompt_max_length:,}'
  return (
    f'`{name}`',
    ', '.join([' + '.join(terms), *hyper]),
    f'{optim.name} {optim.learning_rate:g}, {schedule}',
    f'{config.train.batch_size}',
    f'{config.train.num_epochs:g}',
    tokens,
  )
