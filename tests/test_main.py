"""main: parsing, dispatch, and refusals in one line with nothing written."""

import inspect
import os
import pathlib
import signal
import subprocess
import sys

import pytest

from dpo_jax import main as main_lib
from dpo_jax.run import preemption
from dpo_jax.types import InputError

ROOT = pathlib.Path(__file__).resolve().parents[1]
QUICKSTART = str(ROOT / 'experiments' / 'quickstart.py')
LOCAL = f'--config={QUICKSTART}:stage=dpo,runlocal'
WORKDIR = '--workdir=run'

# (arguments, parts of the error line, its beginning first)
BAD_LINES = [
  # Flags.
  ([], ('--config: ', 'missing')),
  ([LOCAL], ('--workdir: ', 'missing', 'runs/NAME')),
  ([LOCAL, '--workdir='], ('--workdir: ', 'no value')),
  ([LOCAL, WORKDIR, '--wordir=x'], ('--wordir: ', "'workdir'")),
  ([LOCAL, WORKDIR, '--flagfile=x'], ('--flagfile: ', 'no such flag')),
  ([LOCAL, WORKDIR, WORKDIR], ('--workdir: ', 'twice')),
  ([LOCAL, LOCAL, WORKDIR], ('--config: ', 'twice')),
  ([LOCAL, WORKDIR, '--mode=trian'], ('--mode: ', "'trian'", "'train'")),
  ([LOCAL, WORKDIR, 'extra'], ("'extra': ", 'not a flag')),
  ([LOCAL, WORKDIR, '--'], ("'--': ", 'not a flag')),
  ([LOCAL, WORKDIR, '--mode=export'], ('--export_to: ', 'missing')),
  ([LOCAL, WORKDIR, '--export_to=x'], ('--export_to: ', 'not used')),
  ([LOCAL, '--workdir=/dev/null/run'], ('--workdir: ', 'not a folder')),
  # No folder of that name is made here, in which a run would be lost.
  ([LOCAL, '--workdir=foo://b/run'], ("'foo://b/run'", 'not supported', 'gs')),
  ([LOCAL, '--workdir=gs:/b/run'], ("'gs:/b/run'", 'gs://BUCKET/NAME')),
  (
    [LOCAL, WORKDIR, '--mode=export', '--export_to=foo://b'],
    ("'foo://b'", 'not supported'),
  ),
  (
    [LOCAL, WORKDIR, '--config.data.cache_dir=foo://b'],
    ("'foo://b'", 'not supported'),
  ),
  ([LOCAL, f'--workdir={QUICKSTART}'], ('--workdir: ', 'not a folder')),
  (
    [LOCAL, WORKDIR, '--mode=export', f'--export_to={QUICKSTART}/x'],
    ('--export_to: ', 'not a folder'),
  ),
  ([WORKDIR, '--config.loss.beta=1'], ('--config: ', 'missing')),
  # Experiments and their arguments.
  (['--config=quickstrat.py', WORKDIR], ('quickstrat.py: ', 'no such')),
  (
    [f'--config={QUICKSTART}'.replace('start', 'strat'), WORKDIR],
    (QUICKSTART.replace('start', 'strat'), 'did you mean', 'quickstart.py'),
  ),
  ([f'--config={QUICKSTART}:stag=dpo', WORKDIR], ('config arg', "'stage'")),
  ([f'--config={QUICKSTART}:stage', WORKDIR], ('config arg', 'no value')),
  ([f'--config={QUICKSTART}:stage=rm', WORKDIR], ('config.stage: ', "'rm'")),
  # Keys and values.
  ([LOCAL, WORKDIR, '--config.loss.betta=1'], ('config.loss.betta: ', 'beta')),
  ([LOCAL, WORKDIR, '--config.loss.betta'], ('config.loss.betta: ', 'beta')),
  ([LOCAL, WORKDIR, '--noconfig.seed'], ('config.seed: ', "'false'")),
  ([LOCAL, WORKDIR, '--config.=1'], ('config.: ', 'no such key')),
  ([LOCAL, WORKDIR, '--config.seed[0]=1'], ('config.seed[0]: ', "'seed'")),
  ([LOCAL, WORKDIR, '--config.seed\n=1'], ('config.seed\\n: ', "'seed'")),
  ([LOCAL, WORKDIR, '--config.loss.beta', '-1'], ('config.loss.beta: ', '-1')),
  ([LOCAL, WORKDIR, '--config.loss.beta'], ('config.loss.beta: ', 'no value')),
  ([LOCAL, WORKDIR, '--config.loss={}'], ('config.loss: ', 'section')),
  ([LOCAL, WORKDIR, '--config.seed=' + '9' * 5000], ('config.seed: ',)),
  ([LOCAL, WORKDIR, '--config.train.batch_size=0'], ('config.train.bat', '0')),
  ([LOCAL, WORKDIR, '--plan_devices=8'], ('--plan_devices: ', 'mode=train')),
  (
    [LOCAL, '--mode=plan', '--plan_devices=0'],
    ('--plan_devices: ', "'0'", 'e.g. 256'),
  ),
  (
    [LOCAL, WORKDIR, '--config.reference.mode=none', '--mode=plan'],
    ('config.reference.mode: ', "'none'"),
  ),
  (
    [f'--config={QUICKSTART}', WORKDIR, '--mode=precompute_reference'],
    ('config.reference.mode: ', 'nothing'),
  ),
  # Paths.
  ([LOCAL, WORKDIR, '--config.data.train=no.jsonl'], ('no.jsonl:0: ', 'no ')),
  (
    [LOCAL, WORKDIR, '--config.data.train=synthetik'],
    ('config.data.train: ', "did you mean 'synthetic'"),
  ),
  ([LOCAL, WORKDIR, '--config.data.train=.'], ('.:0: ', 'a folder')),
  (
    [LOCAL, WORKDIR, '--config.data.eval=tfds:hh_rlh:test'],
    ('tfds:hh_rlh:test: ', 'hh_rlhf'),
  ),
  ([LOCAL, WORKDIR, '--config.tokenizer=gpt'], ('config.tokenizer: ', "'gpt'")),
  (
    [LOCAL, WORKDIR, '--config.model.preset=', '--config.model.init_from=m'],
    ('config.model.init_from: ', "'m' is not there"),
  ),
  (
    [LOCAL, WORKDIR, '--config.data.manual_dir=' + 'x' * 5000],
    ('config.data.manual_dir: ',),
  ),
]

# (text of an experiment file, part of the error line)
BAD_EXPERIMENTS = [
  ('def get_config(arg)\n  pass\n', 'x.py:1: '),
  ('import no_such_module\n', 'x.py:1: ModuleNotFoundError'),
  ('y = 1\n', "KeyError: 'get_config'"),
  ('def get_config():\n  return {}\n', 'TypeError'),
  ('def get_config(arg):\n  return {}\n', 'returned dict'),
  ('def get_config(arg):\n\n  return 1 / 0\n', 'x.py:3: ZeroDivisionError'),
  (
    'from dpo_jax import config\ndef get_config(arg):\n  c = config.base()\n'
    '  c.loss.betta = 1\n  return c\n',
    'x.py:4: AttributeError',
  ),
  (
    'from dpo_jax import config\ndef get_config(arg):\n  c = config.base()\n'
    "  c.train.batch_size = 'x'\n  return c\n",
    'x.py:4: TypeError',
  ),
  ('\xff', 'x.py: cannot be read'),
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
  """An empty working directory; a refused command must leave it empty."""
  monkeypatch.chdir(tmp_path)
  return tmp_path


def _refuse(argv, capsys) -> str:
  assert main_lib.main(argv) == 2
  out, err = capsys.readouterr()
  assert out == ''
  assert err.endswith('\n') and err.count('\n') == 1, err
  assert '; fix: ' in err and 'Traceback' not in err
  return err


@pytest.mark.parametrize(
  'argv,words', BAD_LINES, ids=lambda x: str(x[-1:])[:40]
)
def test_refuses_a_command_line(argv, words, folder, capsys):
  line = _refuse(argv, capsys)
  assert line.startswith(words[0])
  for word in words:
    assert word in line
  assert len(line) < 1000 or len(str(argv)) > 1000
  assert not list(folder.iterdir())


def test_refuses_a_folder_that_cannot_be_written(folder, capsys, monkeypatch):
  # os.access is replaced: tests may run as root, which can write anywhere.
  monkeypatch.setattr(main_lib.os, 'access', lambda path, mode: False)
  line = _refuse([LOCAL, '--workdir=a/b'], capsys)
  assert line.startswith("--workdir: 'a/b' ") and 'written to' in line


@pytest.mark.parametrize(
  'name, char',
  [
    *(('[x]', "'['"), ('a]b', "']'"), ('a\\b', "'\\\\'"), ('a*b', "'*'")),
    *(('a?b', "'?'"), ('gs:', "'gs:'"), ('a/x:/b', "'x:'"), ('a/[b', "'['")),
    ('a\udcffb', 'not UTF-8'),
  ],
)
def test_refuses_a_name_that_no_checkpoint_is_read_under(
  name, char, folder, capsys
):
  line = _refuse([LOCAL, f'--workdir={name}'], capsys)
  assert line.startswith('--workdir: ') and char in line
  assert not list(folder.iterdir())


@pytest.mark.parametrize('text,words', BAD_EXPERIMENTS)
def test_refuses_a_broken_experiment(text, words, folder, capsys):
  (folder / 'x.py').write_text(text, encoding='latin-1')
  assert words in _refuse(['--config=x.py', WORKDIR], capsys)
  assert [path.name for path in folder.iterdir()] == ['x.py']  # no .pyc


def test_the_real_command_refuses_likewise(tmp_path):
  result = subprocess.run(
    [sys.executable, '-m', 'dpo_jax.main', LOCAL, WORKDIR]
    + ['--config.optim.learning_rat=1'],
    capture_output=True,
    text=True,
    cwd=tmp_path,
    env=os.environ | {'PYTHONPATH': str(ROOT)},
  )
  assert result.returncode == 2
  assert result.stdout == ''
  assert result.stderr == (
    'config.optim.learning_rat: no such key; fix: did you mean '
    "'optim.learning_rate'?\n"
  )
  assert not list(tmp_path.iterdir())


@pytest.fixture
def calls(monkeypatch):
  """Replaces the function of every mode; the list of calls from main."""
  calls = []

  def recorder(mode):
    def run(config, workdir, **flags):
      calls.append((mode, config.stage, workdir, flags))
      return 0

    return run

  monkeypatch.setattr(main_lib, '_function', recorder)
  return calls


@pytest.mark.parametrize('mode', main_lib.MODES)
def test_each_mode_names_a_function(mode):
  parameters = inspect.signature(main_lib._function(mode)).parameters
  given = ('config', 'workdir', *main_lib.MODES[mode].flags)
  assert set(given) <= set(parameters)
  # What the command line does not give has a default.
  own = [p for name, p in parameters.items() if name not in given]
  assert all(p.default is not p.empty for p in own)


@pytest.mark.parametrize(
  'argv,expected',
  [
    ([WORKDIR], ('train', 'dpo', 'run', {})),
    (
      ['--workdir', 'run', '-mode', 'evaluate'],
      ('evaluate', 'dpo', 'run', {}),
    ),
    (['--mode=plan'], ('plan', 'dpo', '', {})),
    (
      ['--mode=plan', '--plan_devices=256'],
      ('plan', 'dpo', '', {'plan_devices': '256'}),
    ),
    (
      [WORKDIR, '--mode=precompute_reference'],
      ('precompute_reference', 'dpo', 'run', {}),
    ),
    ([WORKDIR, '--mode=sample'], ('sample', 'dpo', 'run', {})),
    (
      [WORKDIR, '--mode=export', '--export_to=out'],
      ('export', 'dpo', 'run', {'export_to': 'out'}),
    ),
  ],
)
def test_each_mode_calls_its_function(argv, expected, calls, folder):
  assert main_lib.main([LOCAL, *argv]) == 0
  assert calls == [expected]
  assert not list(folder.iterdir())  # the functions write, main does not


def test_reads_overrides_in_every_spelling():
  argv = ['--config.data.strict', '--noconfig.data.add_eos']
  argv += ['--config.loss.beta', '0.3', '-config.seed=7']
  argv += ['--config.seed=8', LOCAL, '--mode=plan']
  config = main_lib.parse(argv).config
  assert config.data.strict and not config.data.add_eos
  assert (config.loss.beta, config.seed) == (0.3, 8)  # the last one counts
  assert config.is_locked


@pytest.mark.parametrize(
  'raised,code,words',
  [
    (KeyboardInterrupt(), 130, 'by SIGINT'),
    (preemption.Preempted(signal.SIGINT), 130, 'by SIGINT'),
    (preemption.Preempted(signal.SIGTERM), 143, 'by SIGTERM'),
    (InputError('data.jsonl:3: no prompt; fix: add one'), 2, 'data.jsonl:3'),
  ],
)
def test_what_a_loop_raises_becomes_an_exit_code(
  raised, code, words, monkeypatch, capsys
):
  def fail(mode):
    raise raised

  monkeypatch.setattr(main_lib, '_function', fail)
  assert main_lib.main([LOCAL, WORKDIR]) == code
  err = capsys.readouterr().err
  assert words in err and err.count('\n') == 1


def test_want_of_memory_is_one_line_and_exit_code_1(monkeypatch, capsys):
  def run(config, workdir):
    raise MemoryError('8 TB')

  monkeypatch.setattr(main_lib, '_function', lambda mode: run)
  assert main_lib.main([LOCAL, WORKDIR]) == 1
  err = capsys.readouterr().err
  assert err.startswith('out of memory (8 TB); fix: ') and err.count('\n') == 1


def test_divergence_is_one_line_and_exit_code_1(monkeypatch, capsys):
  def run(config, workdir):
    raise preemption.Diverged('step 3: loss is nan')

  monkeypatch.setattr(main_lib, '_function', lambda mode: run)
  assert main_lib.main([LOCAL, WORKDIR]) == 1
  assert capsys.readouterr().err == 'step 3: loss is nan\n'


def test_the_exit_code_of_a_loop_is_passed_on(monkeypatch):
  monkeypatch.setattr(main_lib, '_function', lambda mode: lambda *args: 1)
  assert main_lib.main([LOCAL, WORKDIR]) == 1


def test_a_bug_keeps_its_traceback(monkeypatch):
  def fail(mode):
    raise RuntimeError('a bug')

  monkeypatch.setattr(main_lib, '_function', fail)
  with pytest.raises(RuntimeError):
    main_lib.main([LOCAL, WORKDIR])


def test_help_names_every_mode_and_flag(capsys):
  assert main_lib.main(['--help']) == 0
  text = capsys.readouterr().out
  assert text.startswith(main_lib.__doc__.partition('\n')[0])
  for name, mode in main_lib.MODES.items():
    assert f'--mode={name} ' in text and mode.what in text
  for flag in ('config', 'workdir', 'export_to', 'plan_devices'):
    assert f'--{flag}' in text
