"""R1 SIGKILL, R2 bitwise resume: ends of one process."""

import os
import shutil
import signal
import time

import machine
from score import Line


def survives_kills(line: Line) -> None:
  """R1: kills at random instants, and images of the folder of a live run."""
  whole = line.baseline()
  expected = machine.outcome(whole)
  kills, images = line.pick((5, 24), (200, 2000))
  _kill(line, expected, kills)
  _take_images(line, expected, images)


def _kill(line: Line, expected, count: int) -> None:
  """Kills a run again and again until it is done; then the next one."""
  workdir, left = line.place('killed'), count
  while left:
    child = line.train(workdir)
    here = machine.last_step(workdir)
    last = machine.SMALL['train.num_steps']
    # Also before the first step of a session, and after its last one.
    wanted = min(last, here + line.random.choice((0, 1, 1, 2, 3)))
    machine.wait_for(workdir, wanted, child)
    time.sleep(line.random.random() * line.random.choice((0.02, 0.1, 1.0)))
    child.kill(signal.SIGKILL)
    code = child.wait()
    if code == -signal.SIGKILL:
      left -= 1
      line.fault(f'kill at step {wanted}', _sound(workdir, expected))
    elif code:
      line.fault(f'step {wanted}', f'exit {code}: {child.text()[-300:]}')
      left -= 1
    if (workdir / 'DONE').exists() or not left:
      _finish(line, workdir, expected)
      workdir = line.place('killed')


def _sound(workdir, expected) -> str:
  """What is wrong with the steps that a killed run left."""
  steps, said = machine.steps(workdir), machine.last_step(workdir)
  if not steps:
    return '' if said <= 2 else f'no step is left, {said} were made'
  # A line is written before its step is saved, and one save is in flight.
  if max(steps) < said - 2:
    return f'step {max(steps)} is the newest, {said} were made'
  found = machine.states(workdir)[0]
  bad = [s for s, d in found.items() if expected['states'].get(s) != d]
  return f'steps {bad} are not those of the whole run' if bad else ''


def _finish(line: Line, workdir, expected) -> None:
  """Runs a killed run to its end and compares everything."""
  child = line.train(workdir)
  code = child.wait()
  if code:
    line.violations.append(f'{workdir.name}: exit {code} {child.text()[-300:]}')
    return
  problem = machine.differences(machine.outcome(workdir), expected)
  if problem:
    line.violations.append(f'{workdir.name}: other {problem}')
  shutil.rmtree(workdir)


def _take_images(line: Line, expected, count: int) -> None:
  """Copies the folder of a stopped process, as a crash would leave it."""
  # So many at a time as a disk has room for.
  while count:
    images = _images(line, min(count, 40))
    count -= len(images)
    for _, found in zip(images, machine.states(*images)):
      bad = [s for s, d in found.items() if expected['states'].get(s) != d]
      line.count('image', f'steps {bad} are other ones' if bad else '')
    # One of them goes on to the end.
    image = line.random.choice(images)
    (image / '.lock').unlink(missing_ok=True)
    _finish(line, image, expected)
    for image in images:
      shutil.rmtree(image, ignore_errors=True)


def _images(line: Line, count: int) -> list:
  """So many images of runs that go on."""
  images = []
  while len(images) < count:
    workdir = line.place('imaged')
    child = line.train(workdir)
    machine.wait_for(workdir, 1, child)
    while child.poll() is None and len(images) < count:
      time.sleep(line.random.random() * 0.05)
      child.stop()
      if child.poll() is None:
        images.append(line.place('image'))
        shutil.copytree(workdir, images[-1], symlinks=True)
      child.kill(signal.SIGCONT)
    child.wait()
    shutil.rmtree(workdir)
  return images


# Losses of unlike kinds: pairs, single answers with a running mean, a list
# that is sorted, a reference that moves.
_CELLS = {
  'sigmoid': {},
  'ipo': {'loss__terms__sigmoid': 0, 'loss__terms__ipo': 1},
  'bco': {'loss__terms__sigmoid': 0, 'loss__terms__bco': 1},
  'kto': {'loss__terms__sigmoid': 0, 'loss__terms__kto': 1},
  'aot': {'loss__terms__sigmoid': 0, 'loss__terms__aot': 1},
  'tr_dpo': {'loss__tr_dpo': True, 'loss__tr_tau': 2},
}


def resumes_bitwise(line: Line) -> None:
  """R2: a run that was stopped and goes on is the run that was not."""
  data = line.place('pairs').with_suffix('.jsonl')
  row = '{{"prompt": "p{0}", "chosen": "yes {0}", "rejected": "no {0}"}}\n'
  # 16 of them to train on: an epoch is four updates.
  data.write_text(''.join(row.format(i) for i in range(24)))
  cells = [
    (loss, precision, parts, at)
    for loss in _CELLS
    for precision in ('float32', 'bfloat16')
    for parts in (1, 4)
    for at in (3, 4)  # in the middle of an epoch, and at its edge
  ]
  if line.size == 'small':
    cells = [('bco', 'bfloat16', 4, 4)]
  for loss, precision, parts, at in cells:
    options = _CELLS[loss] | {
      'precision__compute': precision,
      'train__microbatches': parts,
      'data__train': data,
    }
    what = f'{loss} {precision} x{parts} cut at {at}'
    line.fault(what, _cut(line, at, options))
  if line.size == 'full':
    for at in range(24):
      line.fault(f'cut at {at}', _cut(line, at, {'train__num_steps': 24}))


def _cut(line: Line, at: int, options) -> str:
  """What differs in a run that a signal stopped after step `at`."""
  whole = machine.outcome(line.baseline(**options))
  workdir = line.place('cut')
  child = line.train(workdir, inject=lambda: stop_after(at), **options)
  code = child.wait()
  # One that is stopped before its first update has no step to save.
  wanted = [[at], [at + 1]] if at else [[]]
  if code != 143 or machine.steps(workdir)[-1:] not in wanted:
    return f'exit {code}, steps {machine.steps(workdir)} {child.text()[-300:]}'
  return line.goes_on(workdir, whole, **options)


def stop_after(step: int) -> None:
  """Plants a SIGTERM to this process behind the save of a step; 0 = at once."""
  from dpo_jax import train

  if not step:
    started = train.open_run

    def at_start(*args):
      os.kill(os.getpid(), signal.SIGTERM)
      return started(*args)

    train.open_run = at_start
    return
  machine.after_save(step, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
