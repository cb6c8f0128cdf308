"""Cases of runs and restarts: what a directory says, against what is given.

Each case trains a tiny run by the real command, changes one thing, and starts
again. The words are the exit code and the part of the line that names it.
"""

import contextlib
import io
import pathlib
import shutil

from cases.case import Case

from dpo_jax import main as main_lib

EXPERIMENT = (
  f'{pathlib.Path(__file__).resolve().parents[2]}/experiments/quickstart.py'
  ':stage=dpo,runlocal'
)
CONFIG = f'--config={EXPERIMENT}'
PAIR = '{"prompt": "p%d", "%s": "yes %d", "%s": "no"}\n'
ONE = '--config.train.num_steps=1'


def command(workdir, *flags, given=(CONFIG, ONE)):
  """(exit code, stdout, stderr) of one command."""
  out, error = io.StringIO(), io.StringIO()
  with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
    code = main_lib.main([*given, f'--workdir={workdir}', *flags])
  return code, out.getvalue(), error.getvalue()


def words(workdir, *flags, given=(CONFIG, ONE)):
  """The exit code and, if refused, what the line begins with."""
  code, _, error = command(workdir, *flags, given=given)
  key = next((w for w in error.split() if w.startswith('config.')), '')
  return f'exit {code} {key.rstrip(":")}'.strip()


def not_done(workdir):
  (workdir / 'DONE').unlink()


def write_pairs(path, chosen='chosen', rejected='rejected'):
  path.write_text(''.join(PAIR % (i, chosen, i, rejected) for i in range(24)))


def data(tmp_path, change):
  path, run = tmp_path / 'pairs.jsonl', tmp_path / 'run'
  flags = f'--config.data.train={path}', '--config.data.eval_pairs=4'
  write_pairs(path)
  assert words(run, *flags) == 'exit 0'
  not_done(run)
  change(path)
  return words(run, *flags)


def swapped(path):
  write_pairs(path, 'rejected', 'chosen')


def cut(path):
  path.write_text(''.join(path.read_text().splitlines(True)[:-1]))


def edited(path):
  path.write_text(path.read_text().replace('yes 3', 'yea 3'))


def weights(tmp_path, *flags):
  run, hf = tmp_path / 'first', tmp_path / 'hf'
  assert words(run) == 'exit 0'
  code = main_lib.main(
    ['--mode=export', f'--workdir={run}', f'--export_to={hf}']
  )
  assert code == 0
  flags = (
    '--config.model.preset=',
    f'--config.model.init_from={hf}',
    '--config.tokenizer=byte',
    *flags,
  )
  assert words(tmp_path / 'run', *flags) == 'exit 0'
  not_done(tmp_path / 'run')
  flipped = bytearray((hf / 'model.safetensors').read_bytes())
  flipped[-5] ^= 1
  (hf / 'model.safetensors').write_bytes(flipped)
  return words(tmp_path / 'run', *flags)


def other_checkpoints(tmp_path, flag):
  run, other = tmp_path / 'run', tmp_path / 'other'
  assert words(run) == words(other, flag) == 'exit 0'
  not_done(run)
  shutil.rmtree(run / 'checkpoints')
  shutil.copytree(other / 'checkpoints', run / 'checkpoints')
  return words(run)


def corrected(tmp_path, *flags):
  first = words(tmp_path / 'run', *flags)
  left = 'nothing left' if not (tmp_path / 'run').exists() else 'files left'
  return f'{first.split(" config")[0]}, {left}, then {words(tmp_path / "run")}'


def contradicted(tmp_path, flag, *trained):
  assert words(tmp_path / 'run', *trained) == 'exit 0'
  return words(tmp_path / 'run', '--mode=evaluate', flag, given=())


def damaged_cache(tmp_path):
  run, cache = tmp_path / 'run', tmp_path / 'cache'
  flags = '--config.reference.mode=cache', f'--config.data.cache_dir={cache}'
  assert words(run, *flags) == 'exit 0'
  not_done(run)
  path = next((cache / 'reference').glob('*.npz'))
  path.write_bytes(path.read_bytes()[:-30])
  code, _, error = command(run, *flags)
  assert 'fix: remove this file' in error, error
  path.unlink()
  return f'exit {code}, then {words(run, *flags)}'


def broken_state(tmp_path):
  run = tmp_path / 'run'
  flags = (
    '--config.optim.learning_rate=1e15',
    '--config.optim.schedule=constant',
  )
  code = words(run, *flags)[:6]
  done = 'DONE' if (run / 'DONE').exists() else 'no DONE'
  saved = any((run / 'checkpoints').glob('[0-9]*'))
  return f'{code}, {done}, {"saved" if saved else "not saved"}'


def grown(tmp_path, schedule):
  flag = f'--config.optim.schedule={schedule}'
  for steps in (2, 3):
    given = CONFIG, f'--config.train.num_steps={steps}'
    last = words(tmp_path / 'run', flag, given=given)
  return last


def forked(tmp_path):
  flag = '--config.optim.schedule=constant'
  more = '--config.train.num_steps=2'
  assert words(tmp_path / 'run', flag) == 'exit 0'
  assert words(tmp_path / 'long', flag, given=(CONFIG, more)) == 'exit 0'
  fork = f'--fork={tmp_path}/run'
  assert words(tmp_path / 'new', fork, more, given=()) == 'exit 0'
  lines = [
    (tmp_path / name / 'metrics.jsonl').read_text().splitlines()[-1]
    for name in ('new', 'long')
  ]
  return 'the same last evaluation' if lines[0] == lines[1] else 'another'


def judged(tmp_path, column, was, now):
  """A column of every row, changed between two starts."""
  path = tmp_path / 'pairs.jsonl'

  def write(value):
    write_pairs(path)
    text = path.read_text().replace('{', f'{{"{column}": {value}, ')
    path.write_text(text)

  run = tmp_path / 'run'
  flags = f'--config.data.train={path}', '--config.data.eval_pairs=4'
  write(was)
  assert words(run, *flags) == 'exit 0'
  not_done(run)
  write(now)
  return words(run, *flags)


def edited_file(tmp_path, name, old, new):
  """A file of the run itself, edited or (old = '') removed."""
  run = tmp_path / 'run'
  assert words(run) == 'exit 0'
  not_done(run)
  path = run / name
  if old:
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
  else:
    path.unlink()
  code, out, error = command(run)
  said = name in out + error
  return f'exit {code}, {"said" if said else "silent"}'


def leads_nowhere(tmp_path):
  """A finite state whose next scores are NaN, saved."""
  run = tmp_path / 'run'
  flags = (
    *('--config.optim.learning_rate=1e15', '--config.optim.schedule=constant'),
    *('--config.train.save_every=1', '--config.train.num_steps=2'),
  )
  code = words(run, *flags)[:6]
  saved = any((run / 'checkpoints').glob('[0-9]*'))
  return f'{code}, {"saved" if saved else "set aside"}'


KEPT = 'another input between two starts'
FILES = "a run's own file between two starts"
CASES = [
  Case(
    KEPT,
    'chosen and rejected swapped in the data file',
    'exit 2 config.data.train',
    lambda tmp: data(tmp, swapped),
  ),
  Case(
    KEPT,
    'a row fewer in the data file',
    'exit 2 config.data.train',
    lambda tmp: data(tmp, cut),
  ),
  Case(
    KEPT,
    'one letter of one answer edited',
    'exit 2 config.data.train',
    lambda tmp: data(tmp, edited),
  ),
  Case(
    KEPT,
    'one bit of model.safetensors, reference.mode params',
    'exit 2 config.model.init_from',
    weights,
  ),
  Case(
    KEPT,
    'one bit of model.safetensors, reference.mode cache',
    'exit 2 config.model.init_from',
    lambda tmp: weights(tmp, '--config.reference.mode=cache'),
  ),
  Case(
    KEPT,
    'one bit of the base under LoRA',
    'exit 2 config.model.init_from',
    lambda tmp: weights(tmp, '--config.adapter.rank=2'),
  ),
  Case(
    KEPT,
    'the weights of the same texts',
    'exit 2 config.data.train',
    lambda tmp: judged(tmp, 'weight', 1, 2),
  ),
  Case(
    KEPT,
    'the margins of the same texts',
    'exit 2 config.data.train',
    lambda tmp: judged(tmp, 'margin', 1, 2),
  ),
  Case(
    FILES,
    'a digit of metrics.jsonl',
    'exit 2, said',
    lambda tmp: edited_file(tmp, 'metrics.jsonl', '0.6931', '0.6831'),
  ),
  Case(
    FILES,
    'metrics.jsonl deleted',
    'exit 0, said',
    lambda tmp: edited_file(tmp, 'metrics.jsonl', '', ''),
  ),
  Case(
    FILES,
    'env.json deleted',
    'exit 0, said',
    lambda tmp: edited_file(tmp, 'env.json', '', ''),
  ),
  Case(
    'checkpoints of another run',
    'of another seed',
    'exit 2 config.seed',
    lambda tmp: other_checkpoints(tmp, '--config.seed=1'),
  ),
  Case(
    'checkpoints of another run',
    'of another beta',
    'exit 2 config.loss.beta',
    lambda tmp: other_checkpoints(tmp, '--config.loss.beta=3'),
  ),
  Case(
    'checkpoints of another run',
    'of another learning rate',
    'exit 2 config.optim.learning_rate',
    lambda tmp: other_checkpoints(tmp, '--config.optim.learning_rate=0.1'),
  ),
  Case(
    'a refused command, then the right one',
    'train.batch_size=100000',
    'exit 2, nothing left, then exit 0',
    lambda tmp: corrected(tmp, '--config.train.batch_size=100000'),
  ),
  Case(
    'a refused command, then the right one',
    'train.num_epochs=0.0001',
    'exit 2, nothing left, then exit 0',
    lambda tmp: corrected(
      tmp, '--config.train.num_steps=0', '--config.train.num_epochs=0.0001'
    ),
  ),
  Case(
    'a refused command, then the right one',
    'a mesh that does not fit',
    'exit 2, nothing left, then exit 0',
    lambda tmp: corrected(tmp, '--config.mesh.data=3'),
  ),
  Case(
    'a flag against the run',
    'evaluate with another adapter.alpha',
    'exit 2 config.adapter.alpha',
    lambda tmp: contradicted(
      tmp, '--config.adapter.alpha=64', '--config.adapter.rank=2'
    ),
  ),
  Case(
    'a flag against the run',
    'evaluate with another loss.beta',
    'exit 2 config.loss.beta',
    lambda tmp: contradicted(tmp, '--config.loss.beta=0.7'),
  ),
  Case(
    'a flag against the run',
    'evaluate with another eval.batch_size',
    'exit 0',
    lambda tmp: contradicted(tmp, '--config.eval.batch_size=8'),
  ),
  Case(
    'the advice for a damaged cache',
    'cached scores cut short, the file removed as the line says',
    'exit 2, then exit 0',
    damaged_cache,
  ),
  Case(
    'a state that is not finite',
    'optim.learning_rate=1e15, one step',
    'exit 1, no DONE, not saved',
    broken_state,
  ),
  Case(
    'a state that is not finite',
    'optim.learning_rate=1e15, the state before it is finite',
    'exit 1, set aside',
    leads_nowhere,
  ),
  Case(
    'more steps',
    'train.num_steps grows, constant schedule',
    'exit 0',
    lambda tmp: grown(tmp, 'constant'),
  ),
  Case(
    'more steps',
    'train.num_steps grows, linear schedule',
    'exit 2 config.train.num_steps',
    lambda tmp: grown(tmp, 'linear'),
  ),
  Case(
    'more steps',
    '--fork with more steps, against the uninterrupted run',
    'the same last evaluation',
    forked,
  ),
]
