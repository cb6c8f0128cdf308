"""README.md and docs/: every command runs, parses or says what it needs.

The commands of README.md are executed, each training run with two updates;
those of docs/extending.md are executed by test_extending.py. The others
are parsed, and every file that they name is checked. A command that ends in
`# needs ...` is marked: parsed, and never run. FILE.jsonl, FOLDER and the like
are real names in the folder where the commands run.
"""

import collections
import gzip
import hashlib
import importlib.util
import json
import os
import pathlib
import re
import shlex
import subprocess

import pages
import pytest
from pages import Command

from dpo_jax import config as config_lib
from dpo_jax import main as main_lib
from dpo_jax.bench import encoding, gpu_check, sampling, step, sweep
from dpo_jax.exact import __main__ as exact_main
from dpo_jax.models import presets
from dpo_jax.results import __main__ as results_main
from dpo_jax.results import optimum, options
from dpo_jax.storage import initial_weights
from dpo_jax.types import InputError

COMMANDS = [
  command
  for page in pages.TEXTS
  for command in pages.commands(page, pages.TEXTS[page])
]
RECIPES = 'extending.md'  # its commands run on copies that it edits
# Placeholders in the pages for the reader's own files.
FILES = ('FILE', 'FILE.jsonl', 'FILE.jsonl.gz', 'template.jinja')
FOLDERS = ('FOLDER', 'SFT_FOLDER', 'runs/quickstart/sft')
# Inputs of experiments/stories_*.py, outside the repository.
STORIES = (
  '../shared/data/prefs/stories_lexicon.jsonl.gz',
  '../shared/data/models/stories260K',
)
# Scripts with --dry-run, and programs that are not this repository's.
LAUNCHERS = tuple(
  f'scripts/launch_{name}.sh' for name in ('local', 'tpu', 'gke')
)
OUTSIDE = ('export', 'gcloud', 'gcluster', 'scancel', 'sky', 'squeue')
# Flags that `...` stands for, as in `--mode=evaluate ...`.
THE_SAME = {
  '--config': 'experiments/quickstart.py:stage=dpo',
  '--workdir': 'runs/quickstart/dpo',
}
# Every run makes two updates: a longer one tests the command no better.
SHORT = (
  '--config.train.num_steps=2',
  '--config.train.batch_size=4',
  '--config.optim.warmup_steps=0',
  '--config.data.eval_pairs=4',
)


def kind(command: Command) -> str:
  """How a command is tested: 'marked', 'executed' or 'parsed'."""
  if command.needs:
    return 'marked'
  if command.page == RECIPES:
    return 'executed'
  text = ' '.join(command.words)
  has_its_data = 'stories' not in text or 'FILE' in text
  is_executed = command.page == 'README.md' and has_its_data
  return 'executed' if is_executed else 'parsed'


@pytest.fixture
def checkout(tmp_path, monkeypatch):
  """A folder like the repository's, with the files that the pages name."""
  folder = tmp_path / 'checkout'
  folder.mkdir()
  monkeypatch.chdir(folder)
  for name in ('experiments', 'scripts', 'tests', 'docs'):
    os.symlink(pages.ROOT / name, name)
  rows = [
    {'prompt': f'Say {n}. ', 'chosen': f'{n}', 'rejected': f'not {n}'}
    for n in range(32)
  ]
  plain = ''.join(json.dumps(row) + '\n' for row in rows).encode()
  for name in (*FILES, STORIES[0]):
    path = pathlib.Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(plain) if path.suffix == '.gz' else plain)
  return folder


@pytest.mark.parametrize('page', sorted(pages.TEXTS.keys() - {RECIPES}))
def test_every_command_of_a_page_parses(page, checkout):
  for name in (*FOLDERS, STORIES[1]):
    pathlib.Path(name).mkdir(parents=True, exist_ok=True)
  # An experiment measures data with the tokenizer of its model.
  shape = presets.get('tiny', vocab_size=259)
  initial_weights.record(pathlib.Path('FOLDER'), shape)
  said = {'tokenizer': 'byte', 'model': {'init_from': ''}, 'seed': 0}
  pathlib.Path('FOLDER/config.json').write_text(json.dumps(said))
  # Commands without --config open the run that the quickstart leaves.
  quickstart = config_lib.load('experiments/quickstart.py:stage=dpo')
  run = pathlib.Path('runs/quickstart/dpo')
  run.mkdir(parents=True, exist_ok=True)
  text = json.dumps(config_lib.resolve(quickstart))
  (run / 'config.json').write_text(text)
  for command in COMMANDS:
    if command.page == page:
      check(tuple(map(_on_this_machine, command.words)))


def _on_this_machine(word: str) -> str:
  """A word with a folder in place of a bucket, whose package is optional."""
  if word.startswith('--bucket='):
    return word
  word = word.replace('gs://BUCKET/runs/stories', 'runs/quickstart/dpo')
  for name in ('FILE.jsonl', 'FOLDER'):
    word = word.replace(f'gs://BUCKET/{name}', name)
  return word.replace('gs://BUCKET', 'buckets')


def test_the_commands_of_the_readme_run(checkout):
  os.symlink('runs/quickstart/sft', 'FOLDER')
  chosen = [
    each.words
    for each in COMMANDS
    if kind(each) == 'executed' and each.page != RECIPES
  ]
  for words in dict.fromkeys(chosen):
    execute(words)
  # docs/metrics.md names no metric that these runs did not write, except those
  # of several terms and of experts.
  written = {
    name
    for path in pathlib.Path('runs').rglob('metrics.jsonl')
    for line in path.read_text().splitlines()
    for name in json.loads(line)
  }
  rows = re.findall(r'^\| (`.*?) \|', pages.TEXTS['metrics.md'], re.MULTILINE)
  named = {name for row in rows for name in re.findall('`(.+?)`', row)}
  named = {name for name in named if not name.startswith(('terms/', 'router/'))}
  assert len(named) > 15 and named <= written


def test_how_many_commands_are_executed_parsed_or_marked():
  counts = collections.Counter(map(kind, COMMANDS))
  print(f'{len(COMMANDS)} commands: {dict(counts)}')
  assert counts['executed'] >= 9 and counts['marked'] <= 6
  assert counts.total() == len(COMMANDS) >= 20
  # README.md shows how to train and at least four other modes.
  executed = [each.words for each in COMMANDS if each.page == 'README.md']
  modes = {w for words in executed for w in words if w.startswith('--mode=')}
  assert len(modes) >= 4 and ('scripts/quickstart.sh',) in executed


@pytest.mark.parametrize(
  'stale',
  [
    'python -m dpo_jax.main --config=experiments/gone.py --workdir=x',
    'python -m dpo_jax.main --mode=plan --config=... --config.loss.betta=1',
    'python -m dpo_jax.main --mode=plan --config=... --config.data.train=NO',
    'python -m dpo_jax.main --mode=shown ...',
    'python -m dpo_jax.results RUNS --output=x',
    'python -m dpo_jax.gone',
    'python -m pytest tests/test_gone.py',
    'python scripts/gone.py',
    'python scripts/loss_table.py --fast',
    'python scripts/benchmark.py --rows=3',
    'scripts/gone.sh',
    'source scripts/gone.sh',
    'make all',
  ],
)
def test_a_stale_command_is_found(stale, checkout):
  (command,) = pages.commands('page', f'```bash\n{stale}\n```\n')
  with pytest.raises(
    (
      *(AssertionError, InputError, OSError, SystemExit),
      subprocess.CalledProcessError,
    )
  ):
    check(command.words)


def test_a_page_is_read_as_its_reader_would():
  page = (
    '1. Do\n\n   ```bash\n   python a \\\n     --b  # why\n   # note\n'
    '   pip c  # needs a TPU\n   ```\n\nor `python -m\nx y`, `python` alone.\n'
    '```text\npython no\n```\n'
  )
  assert pages.commands('p', page) == [
    Command('p', ('python', 'a', '--b'), ''),
    Command('p', ('pip', 'c'), 'a TPU'),
    Command('p', ('python', '-m', 'x', 'y'), ''),
  ]


def check(words: tuple[str, ...]) -> None:
  """Parses a command in a checkout; raises if it could not run."""
  program, *rest = words
  if program == 'source':
    subprocess.run(['bash', '-n', pages.ROOT / rest[0]], check=True)
  elif program in LAUNCHERS and not rest:
    assert (pages.ROOT / program).is_file()
  elif program in LAUNCHERS:
    dry = (pages.ROOT / program, '--dry-run', *rest)
    environment = os.environ | {'DPO_JAX_UNCOMMITTED': '1'}
    subprocess.run(dry, check=True, env=environment, stdout=subprocess.PIPE)
    if '--' in rest:
      check(('python', '-m', 'dpo_jax.main', *rest[rest.index('--') + 1 :]))
  elif program == 'scripts/supervise.sh':
    words = rest[rest.index('--') + 1 :]
    is_flag = words[0].startswith('-')
    check(('python', '-m', 'dpo_jax.main', *words) if is_flag else tuple(words))
  elif program.startswith('scripts/'):
    for recorded in record(*words):
      check(('python', *recorded))
  elif program == 'sbatch':
    script = next(word for word in rest if not word.startswith('-'))
    assert (pages.ROOT / script).is_file(), script
    check(('python', '-m', 'dpo_jax.main', *rest[rest.index(script) + 1 :]))
  elif program == 'for':
    assert rest[:2] == ['i', 'in'] and rest[-1] == 'done', rest
    numbers, body = rest[2 : rest.index('do') - 1], rest[rest.index('do') + 1 :]
    for number in (*numbers, '3'):
      words = [word.rstrip(';').replace('$i', number) for word in body[:-1]]
      check(tuple(words))
  elif program in OUTSIDE:
    assert rest or program == 'export', words
  elif program not in ('python', '$PYTHON'):
    raise AssertionError(f'{program}: teach tests/test_docs.py to check it')
  elif rest[0] == '-m':
    check_module(rest[1], rest[2:])
  elif rest[0] == 'scripts/benchmark.py':
    check_benchmark(rest[1:])
  else:
    assert len(rest) == 1 and callable(load(pages.ROOT / rest[0]).main), rest


def check_module(name: str, words: list[str]) -> None:
  """Parses the arguments of `python -m NAME`."""
  if name == 'dpo_jax.main' and words[0].startswith('--help'):
    assert main_lib.main([words[0].replace('SECTION', 'loss')]) == 0
  elif name == 'dpo_jax.main':
    main_lib.parse(with_the_same(words))
  elif name == 'dpo_jax.results':
    options.parse(words)
  elif name == 'dpo_jax.results.optimum':
    optimum.parse(words)
  elif name == 'dpo_jax.exact':
    exact_main.parse(words)
  elif name == 'dpo_jax.bench.gpu_check':
    gpu_check.parse(words)
  else:
    # Only the paths are checked: other modules parse their own arguments.
    is_test = name.startswith('tests.')
    assert is_test or name in ('pytest', 'ruff', 'pip', 'venv'), name
    paths = [word for word in words if word.startswith('tests/')]
    assert all((pages.ROOT / path).exists() for path in paths), paths


def with_the_same(words: list[str]) -> list[str]:
  """A command line with each `...` written out."""
  given = {word.partition('=')[0] for word in words}
  missing = [f'{k}={v}' for k, v in THE_SAME.items() if k not in given]
  parts = [missing if word == '...' else [word] for word in words]
  return [
    f'{word.removesuffix("...")}{THE_SAME["--config"]}'
    if word == '--config=...'
    else word
    for part in parts
    for word in part
  ]


def check_benchmark(words: list[str]) -> None:
  """Reads the flags of scripts/benchmark.py and measures nothing."""
  script = load(pages.ROOT / 'scripts/benchmark.py')
  with pytest.MonkeyPatch.context() as patch:
    for bench in (encoding, sampling, step, sweep):
      patch.setattr(bench, 'run', lambda options: options)
    patch.setattr(script.sys, 'argv', ['benchmark.py', *words])
    assert script.main() == 0


def load(path: pathlib.Path):
  """The module of a script."""
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def record(script: str, *arguments: str) -> list[list[str]]:
  """The arguments of each python that a script in scripts/ would start.

  The script finds an up-to-date environment, whose python records its arguments
  and does nothing else.
  """
  venv = pathlib.Path('venv').absolute()
  log, python = venv / 'log', venv / 'bin/python'
  python.parent.mkdir(parents=True, exist_ok=True)
  log.write_text('')
  digest = hashlib.sha256(pins(script, arguments).encode()).hexdigest()
  (venv / 'requirements.sha256').write_text(digest)
  python.write_text(
    f'#!/bin/sh\n(printf "%s\\t" "$@"; echo) >>{shlex.quote(str(log))}\n'
  )
  python.chmod(0o755)
  # The suite itself may run in another environment, by the same variables.
  environment = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith('DPO_JAX_')
  }
  environment['DPO_JAX_VENV'] = str(venv)
  subprocess.run([pages.ROOT / script, *arguments], env=environment, check=True)
  return [line.split('\t')[:-1] for line in log.read_text().splitlines()]


def pins(script: str, arguments: tuple[str, ...]) -> str:
  """The pinned requirements that a command of scripts/ asks for."""
  flags = dict(word.partition('=')[::2] for word in arguments)
  name = 'requirements.txt'
  if '--python' in flags:
    name = 'requirements-py312.txt'
  if script.endswith('gpu_check.sh'):
    name = 'requirements-gpu.txt'
  text = (pages.ROOT / name).read_text()
  if '--jax' in flags:
    new = rf'\1=={flags["--jax"]}'
    text = re.sub(r'^(jax|jaxlib)==[^ \n]+', new, text, flags=re.M)
  return text


def execute(words: tuple[str, ...]) -> None:
  """Runs a command of README.md; a training run makes two updates."""
  if words[0].startswith('scripts/'):
    for recorded in record(*words):
      if recorded[1] not in ('pytest', 'ruff'):
        execute(('python', *recorded))
    return
  _, _, name, *rest = words
  if name == 'dpo_jax.results':
    assert results_main.main(rest) == 0, words
    return
  assert name == 'dpo_jax.main', words
  more = () if rest[0].startswith('--help') else SHORT
  assert main_lib.main([*rest, *more]) == 0, words
