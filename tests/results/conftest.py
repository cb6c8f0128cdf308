"""Run directories made by hand, of the form that training writes."""

import json
import pathlib

import numpy as np
import pytest

from dpo_jax.results import __main__ as command
from dpo_jax.results import cells, collect
from dpo_jax.results.figures import report, style

CONFIG = {
  'stage': 'dpo',
  'seed': 0,
  'data': {'train': '/data/hh.jsonl.gz', 'max_length': 512},
  'loss': {'terms': {'sigmoid': 1.0}, 'beta': 0.1, 'label_smoothing': None},
  'optim': {'name': 'adamw', 'learning_rate': 5e-4},
}


def _merged(base: dict, changes: dict) -> dict:
  """`base` with dotted keys set; loss.terms is set whole."""
  merged = json.loads(json.dumps(base))
  for key, value in changes.items():
    *parents, last = key.split('.')
    node = merged
    for parent in parents:
      node = node.setdefault(parent, {})
    node[last] = value
  return merged


def _entry(loss, accuracy, margin, kl) -> dict:
  names = ('loss', 'rewards/accuracies', 'rewards/margins', 'kl')
  return dict(zip(names, (loss, accuracy, margin, kl)))


def _default_lines(final: float) -> list[dict]:
  start = _entry(0.6931, 0.0, 0.0, 0.0)
  end = _entry(final, 0.8, 1.5, 2.0)
  return [
    {'step': 0, 'split': 'eval', **start},
    {'step': 5, 'split': 'train', 'loss': 0.6, 'grad_norm': None},
    {'step': 10, 'split': 'train', **end},
    {'step': 10, 'split': 'eval', **end},
  ]


@pytest.fixture
def make_run(tmp_path):
  """make_run(name, changes, final=, lines=, done=, tail=, arrays=) -> path."""

  def make(
    name,
    changes=(),
    *,
    final=0.4,
    lines=None,
    done=True,
    tail='',
    arrays=None,
    step=10,
  ) -> pathlib.Path:
    path = tmp_path / name
    path.mkdir(parents=True, exist_ok=True)
    config = _merged(CONFIG, dict(changes))
    (path / 'config.json').write_text(json.dumps(config))
    lines = _default_lines(final) if lines is None else lines
    text = ''.join(json.dumps(line) + '\n' for line in lines)
    (path / 'metrics.jsonl').write_text(text + tail)
    if arrays is not None:
      (path / 'per_example').mkdir(exist_ok=True)
      np.savez(path / 'per_example' / f'eval_{step}.npz', **arrays)
    if done:
      (path / 'DONE').touch()
    return path

  return make


@pytest.fixture
def make_scored_run(make_run):
  """A run whose last metrics are the means of the values that it saved.

  make_scored_run(name, changes, margins=, uids=, prompts=, beta=, weight=,
  without=, **make_run's) -> path. Log-ratios are 3/4 and -1/4 of the margins,
  rewards beta times as much, the loss is DPO's. `without` names fields that the
  file lacks.
  """

  def make(
    name,
    changes=(),
    *,
    margins,
    uids=None,
    prompts=None,
    beta=0.1,
    weight=None,
    without=(),
    **more,
  ):
    gap = np.asarray(margins, np.float64)
    chosen, rejected = 0.75 * gap, -0.25 * gap
    reference = np.full(len(gap), -40.0)
    loss = np.log1p(np.exp(-beta * gap))
    uids = [f'{i:016x}' for i in range(len(gap))] if uids is None else uids
    weight = np.ones(len(gap)) if weight is None else np.asarray(weight)
    arrays = {
      'uid': np.array(uids),
      # A prompt of its own for each record, unless `prompts` says otherwise.
      'prompt_id': np.array(uids if prompts is None else prompts),
      'policy_chosen': reference + chosen,
      'policy_rejected': reference + rejected,
      'reference_chosen': reference,
      'reference_rejected': reference,
      'chosen_tokens': np.full(len(gap), 7),
      'rejected_tokens': np.full(len(gap), 9),
      'weight': weight,
      'margin': np.zeros(len(gap)),
      'score_chosen': np.full(len(gap), np.nan),
      'score_rejected': np.full(len(gap), np.nan),
      'loss': loss,
      'reward_chosen': beta * chosen,
      'reward_rejected': beta * rejected,
    }
    arrays = {k: v for k, v in arrays.items() if k not in without}
    end = _entry(
      *(
        float(np.average(each, weights=weight))
        for each in (loss, gap > 0, beta * gap, -0.5 * (chosen + rejected))
      )
    )
    end['rewards/chosen'] = float(np.average(beta * chosen, weights=weight))
    lines = [
      {'step': 0, 'split': 'eval', **_entry(float(np.log(2)), 0.0, 0.0, 0.0)},
      {'step': 10, 'split': 'eval', **end},
    ]
    return make_run(name, changes, lines=lines, arrays=arrays, **more)

  return make


@pytest.fixture
def no_drawing(monkeypatch):
  """A figure takes a second; figures/test_figures.py draws."""

  def render(name, make):
    del make
    return {file: b'drawn' for file in figure_files(name)}

  monkeypatch.setattr(style, 'render', render)


def figure_files(name: str) -> list[str]:
  """Names of the files of one figure."""
  return [
    f'figures/{name}{ending}.{suffix}'
    for ending in style.WIDTHS
    for suffix in style.FORMATS
  ]


@pytest.fixture
def make_report():
  """make_report(*paths) -> what figures are made from; runs lie beside it."""

  def make(*paths, **fields):
    table = cells.make_table(collect.collect(paths))
    return report.Report(table, paths[0].parent, **fields)

  return make


@pytest.fixture
def paper(make_scored_run, tmp_path, capsys, no_drawing):
  """A folder of tables over two rows of two seeds; its runs beside it."""
  for beta in (0.1, 0.4):
    for seed in (0, 1):
      make_scored_run(
        f'runs/{beta},{seed}',
        {'loss.beta': beta, 'seed': seed},
        margins=np.random.default_rng(seed).normal(2, 3, 32),
        beta=beta,
      )
  out = tmp_path / 'paper'
  arguments = [str(tmp_path / 'runs'), f'--out={out}', '--figures=curves']
  assert command.main(arguments) == 0
  capsys.readouterr()
  return out


@pytest.fixture
def file_names():
  """The files that the command writes of runs with one beta."""
  tables = {'results.md', 'results.tex', 'results.csv', 'figures.json'}
  figures = {'figures/captions.md', *figure_files('curves')}
  return tables | figures | {'provenance.json'}


@pytest.fixture
def files_in():
  """files_in(folder) -> names of all files at and below it."""

  def names(folder):
    files = [path for path in folder.rglob('*') if path.is_file()]
    return {path.relative_to(folder).as_posix() for path in files}

  return names
