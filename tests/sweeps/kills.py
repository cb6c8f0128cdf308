"""Kills of a sweep at random instants: python tests/sweeps/kills.py N [SEED].

Runs a sweep of eight points by four processes on one folder. Every few seconds
one of them, chosen by the seed, is killed (SIGKILL) and started again, N times.
The folder must equal that of a sweep that nobody killed, bit for bit, and every
point must have been finished by one process only.
"""

import pathlib
import random
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent))

import experiment
import runs

PROCESSES = 4
FLAGS = ['--sweep.loss.beta=0.1,0.2,0.3,0.4', '--sweep.seed=0:2']
FLAGS += ['--config.train.num_steps=30', '--config.train.save_every=3']


def start(path, folder, log):
  """A process that runs the sweep."""
  command = [sys.executable, '-m', 'dpo_jax.main', '--mode=sweep']
  command += [f'--config={path}', f'--workdir={folder}', *FLAGS]
  return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)


def main(num_kills: int, seed: int = 0) -> int:
  """Prints what was killed and what came of it; 1 if anything differs."""
  draw = random.Random(seed)
  with tempfile.TemporaryDirectory() as scratch:
    root = pathlib.Path(scratch)
    path = experiment.write(root)
    with open(root / 'whole.txt', 'w') as log:
      assert start(path, root / 'whole', log).wait() == 0
    kills = 0
    with open(root / 'log.txt', 'a') as log:
      live = [start(path, root / 's', log) for _ in range(PROCESSES)]
      while any(child.poll() is None for child in live):
        time.sleep(draw.uniform(0.5, 8.0))
        i = draw.randrange(PROCESSES)
        if kills < num_kills and live[i].poll() is None:
          live[i].kill()
          live[i].wait()
          kills += 1
          live[i] = start(path, root / 's', log)
    codes = [child.returncode for child in live]
    names = sorted(p.parent.name for p in (root / 'whole').glob('*/DONE'))
    runs.same(root / 'whole', root / 's', names)
    done = (root / 'log.txt').read_text()
    finished = [done.count(f'{name}: done in') for name in names]
    # One that was killed after DONE and before its line has no line.
    assert max(finished) == 1, done
    print(f'{kills} kills, {len(names)} points equal, exit codes {codes}')
  return 0


if __name__ == '__main__':
  sys.exit(main(*map(int, sys.argv[1:])))
