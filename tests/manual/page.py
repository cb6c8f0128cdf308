"""Text of one page of docs/losses/, and its plot.

Comes in: the name of a loss or an option. Goes out: Markdown and SVG, written
from the registry, from the function's docstring and source, and from
curves.py. Writes no file: scripts/loss_pages.py does.
"""

import re
from typing import NamedTuple

from manual import curves, reductions, source, svg

from dpo_jax import losses
from dpo_jax.losses import records, rules

SHOWN_AT = (-2.0, 0.0, 2.0)  # values of D in the table
_TERM, _BETA = 'sigmoid', 0.1  # the term and the beta of the experiments
_BESIDE = ('nll', 'sft')  # terms that stand beside it
_READS = {
  'comparisons': 'comparisons: one value each',
  'completions': 'single completions, desirable or not (a comparison counts as '
  'one of each): one value each',
  'lists': 'all answers to a prompt at once: one value per prompt',
}
_CHANGES = {
  'scores': 'the log-probabilities, for losses and metrics',
  'log_ratios': 'the log-ratios that losses read, not those of the metrics',
  'beta': 'the beta of the losses',
  'values': 'the value of each comparison',
  'reference': 'the reference, between updates',
  'mean': 'the mean over the batch',
}
_DIVIDED_BY = {
  'comparisons': 'the weights of the comparisons',
  'chosen_tokens': "the batch's chosen tokens",
  'completions': 'the weights of the completions',
  'desirable': 'those of the desirable ones',
  'undesirable': 'those of the undesirable ones',
  'lists': 'the weights of the prompts',
}


class Page(NamedTuple):
  """Both files of a loss or an option."""

  text: str  # NAME.md
  plot: str  # NAME.svg


def write(name: str) -> Page:
  """The page of a loss or an option."""
  section, plot = numbers(name)
  return Page(text(name, section), plot)


def text(name: str, section: list[str]) -> str:
  """The text of a page around its section of numbers."""
  its, kind = entry(name), '' if name in losses.names() else ', an option'
  doc = source.read_doc(its.fn)
  lines = [f'# {its.label} (`{name}`{kind})', '', *_wrapped(doc.summary), '']
  lines += ['```text', *_wrapped(its.formula), '```', '']
  for paragraph in doc.paragraphs:
    lines += [*_wrapped(paragraph), '']
  facts = [*_facts(its), *_relations(name)]
  if doc.returns:
    facts.append(('Returns', doc.returns.rstrip('.')))
  for key, value in facts:
    lines += _wrapped(f'- **{key}**: {value}', indent='  ')
  lines += ['', *_hyper(its, doc), *section, '', '## The function', '']
  path = source.file(its.fn)
  lines += [*_wrapped(f'In [{path}](../../{path}), without docstrings:'), '']
  lines += ['```python', *source.code(its.fn), '```', '']
  return '\n'.join(lines)


def entry(name: str) -> records.Loss | records.Option:
  """The registered loss or option of that name."""
  if name in losses.names():
    return losses.get(name)
  return losses.get_option(name)


def numbers(name: str) -> tuple[list[str], str]:
  """The section with the plot and the table at SHOWN_AT; the plot."""
  its, is_loss = entry(name), name in losses.names()
  if getattr(its, 'changes', '') == 'reference':
    return _path(name)
  of = curves.of_loss if is_loss else curves.of_option
  shown = of(name)
  base = its if is_loss else losses.get(curves.base(name))
  head = ('', 'D', 'loss', 'd loss / d r_w', 'd loss / d r_l')
  rows = [
    (
      each.label,
      f'{d:g}',
      *map(_number, (each.loss[i], each.chosen[i], each.rejected[i])),
    )
    for each in shown
    for d in SHOWN_AT
    for i in [int(abs(each.margin - d).argmin())]
  ]
  drop = int(len(shown) == 1)  # one curve needs no label
  lines = [
    '## Against D',
    '',
    f'![Loss and gradient of {name} against D]({name}.svg)',
    '',
    *_wrapped(_setting(its, base)),
    '',
    *table([row[drop:] for row in (head, *rows)]),
  ]
  values = [svg.Line(c.label, c.margin, c.loss) for c in shown]
  if len(shown) == 1:
    (only,) = shown
    title, slopes = (
      'gradient by the reward',
      [
        svg.Line('chosen', only.margin, only.chosen),
        svg.Line('rejected', only.margin, only.rejected),
      ],
    )
  else:
    title = 'gradient by the chosen reward'
    slopes = [svg.Line(c.label, c.margin, c.chosen) for c in shown]
  # Without choices the left panel has one line, whose name is the page's.
  left = svg.Panel('loss', 'D', values, has_legend=len(shown) > 1)
  right = svg.Panel(title, 'D', slopes, has_legend=len(shown) == 1)
  return lines, svg.draw([left, right])


def flags(name: str) -> str:
  """Arguments that choose a loss or an option in any experiment file."""
  if name in losses.names():
    own = [] if name in _BESIDE or name == _TERM else _instead(name)
    return ' '.join([*own, f'--config.loss.terms.{name}=1'])
  option, base = losses.get_option(name), curves.base(name)
  first = [] if base == _TERM else [flags(base)]
  value = 'True'
  if name in option.static or name in option.hyper:
    _, values = curves.settings(option)[0]
    value = values[name]
    value = value if isinstance(value, str) else f'{value:g}'
  return ' '.join([*first, f'--config.loss.{name}={value}'])


def link(paper: str) -> str:
  """A citation whose arXiv number is a link."""
  return re.sub(
    r'arXiv:(\d{4}\.\d{5})', r'[arXiv:\1](https://arxiv.org/abs/\1)', paper
  )


def cell(text: str) -> str:
  """Text of a table's cell: a bar would end it."""
  return text.replace('|', '\\|')


def _instead(name: str) -> list[str]:
  """Arguments that take back what the experiments set for their own term."""
  loss = losses.get(name)
  words = [f'--config.loss.terms.{_TERM}=0']
  if 'reference' not in loss.needs:
    words.append('--config.reference.mode=none')
  beta = loss.hyper.get('beta')
  if beta != _BETA:
    given = 'None' if beta is None else f'{beta:g}'
    words.append(f'--config.loss.beta={given}')
  return words


def _facts(its) -> list[tuple[str, str]]:
  """What the registry says of a loss or an option, as (key, value)."""
  needs = [records.NEEDS[need] for need in records.NEEDS if need in its.needs]
  facts = [('Source', link(its.paper))]
  aliases = [name for name, own in rules._ALIASES.items() if own == its.name]
  if aliases:
    facts.append(('Called elsewhere', ', '.join(f'`{a}`' for a in aliases)))
  if its.name in losses.names():
    takes = [
      option
      for option in losses.option_names()
      if rules.accepts(losses.get_option(option), its)
    ]
    facts.append(('Reads', f'{_READS[its.view]}{_divisor(its)}'))
    last = ('Takes the options', _links(takes) or 'none')
  else:
    facts.append(('Changes', _CHANGES[its.changes]))
    takes = [
      name for name in losses.names() if rules.accepts(its, losses.get(name))
    ]
    every = its.changes == 'reference'
    words = 'every loss that reads a reference' if every else _links(takes)
    last = ('For the losses', words)
  facts.append(('Needs', ', '.join(needs) or "the policy's scores alone"))
  if its.state:
    start = ', '.join(f'`{k}` {v:g}' for k, v in its.state.items())
    update = f'`{its.update.__name__}` moves it with every training batch'
    facts.append(('State', f'{start} at first; {update}'))
  return [*facts, last, ('Chosen by', f'`{flags(its.name)}`')]


def _links(names) -> str:
  return ', '.join(f'[{name}]({name}.md)' for name in names)


def _divisor(loss) -> str:
  """What the sums of a loss's values are divided by."""
  words = [
    _DIVIDED_BY.get(part, part.replace('_', ' '))
    for part in curves.divisors(loss.name)
  ]
  return f', the sum divided by {" and, part by part, by ".join(words)}'


def _relations(name: str) -> list[tuple[str, str]]:
  """The claims of reductions.py about a loss or an option, as facts."""
  becomes = '; '.join(
    (f'{_links([c.other])}, ' if c.other != name else '')
    + reductions.condition(c)
    for c in reductions.of(name)
  )
  others = dict.fromkeys(c.name for c in reductions.to(name))
  facts = [('Becomes', becomes or 'no other loss here')]
  return facts + [('What becomes it', _links(others))] * bool(others)


def _hyper(its, doc) -> list[str]:
  """Table of the hyper-parameters and choices; [] if there are none."""
  grid = getattr(its, 'grid', {})
  rows = [
    (
      f'`{key}`',
      f'{value:g}',
      its.bounds.get(key, 'any number'),
      ', '.join(f'{v:g}' for v in grid.get(key, ())) or '-',
      doc.args.get(key, '').rstrip('.'),
    )
    for key, value in its.hyper.items()
  ]
  rows += [
    (
      f'`{key}`',
      f'{choices[0]}',
      ', '.join(map(str, choices)),
      '-',
      doc.args.get(key, '').rstrip('.'),
    )
    for key, choices in its.static.items()
  ]
  if not rows:
    return []
  head = ('key of `config.loss`', 'default', 'bounds', 'usual grid', 'meaning')
  return [*table([head, *rows]), '']


def _setting(its, base) -> str:
  """The sentence that says what D is, and which batch was evaluated."""
  beta = 'beta ' if 'beta' in base.hyper else ''
  rewards = {
    'log_ratio': f'{beta}a{"/|y|" if curves.divides(base) else ""}',
    'log_prob': f'{beta}log pi',
    'mean_log_prob': f'{beta}log pi/|y|',
    'none': 'log pi/|y|',
  }
  reward = rewards.get(base.reward, f'{beta}{base.reward.replace("_", " ")}')
  if 'reduction' in base.static and base is its:
    reward = f'{reward} (mean) or {beta}a (sum)'
  given = curves.SHOWN.get(its.name, {})
  given = ', '.join(f'{k} = {v:g}' for k, v in given.items() if k == 'beta')
  text = (
    f'D = r_w - r_l with r = {reward}{" and " * bool(given)}{given}, on the'
  )
  text += ' [example](README.md#the-example) of every page'
  if 'whole_batch' in (*its.needs, *base.needs):
    text += ', in a batch with three more comparisons, at D = -1, 0 and 1'
  return f'{text}.'


def _path(name: str) -> tuple[list[str], str]:
  """Table and plot of a reference that follows a policy from 0 to 1."""
  steps, reference = curves.moving_reference(name)
  policy = steps / steps[-1]
  at = [0, len(steps) // 2, len(steps) - 1]
  rows = [
    (f'{steps[i]}', _number(policy[i]), _number(reference[i])) for i in at
  ]
  lines = [
    svg.Line('policy', steps, policy),
    svg.Line('reference', steps, reference),
  ]
  section = [
    '## Against the step',
    '',
    f'![A weight of policy and reference against the step]({name}.svg)',
    '',
    'A weight of the policy goes from 0 to 1, that of the reference follows.',
    '',
    *table([('step', 'policy', 'reference'), *rows]),
  ]
  return section, svg.draw([svg.Panel('a weight of both', 'step', lines)])


def table(rows) -> list[str]:
  head, *rest = rows
  return [
    f'| {" | ".join(cell(text) for text in row)} |'
    for row in (head, ('---',) * len(head), *rest)
  ]


def _number(value: float) -> str:
  """Three digits after the point, or significant ones of a large number."""
  if value != value:
    return '-'
  text = f'{value:.3f}' if abs(value) < 1000 else f'{value:.4g}'
  return text.removeprefix('-') if float(text) == 0 else text


def _wrapped(text: str, indent: str = '') -> list[str]:
  return source.wrap(' '.join(text.split()), indent)
