"""A run, a sweep and a report in a real bucket, as its own user sees them.

The bucket is that of an emulator of Cloud Storage. Children are real processes;
what they leave is compared with the same runs on this machine.
"""

import json
import os
import subprocess
import sys
import time

import pytest
import real_bucket

from dpo_jax.data.sources import synthetic

ROOT = real_bucket.ROOT
CONFIG = f'--config={ROOT}/experiments/quickstart.py:stage=dpo,runlocal'
_READ = """
import json, sys
import jax
from dpo_jax import tree
from dpo_jax.storage import checkpoints, files, metrics_file
out = []
for name in sys.argv[1:]:
  run = files.at(name)
  lines = metrics_file.read(run / 'metrics.jsonl')
  with checkpoints.Checkpoints(run / 'checkpoints') as saved:
    restored = saved.restore_latest({'params': None}, partial=True)
  seal = metrics_file.Seal(lines).value()
  prints = tree.fingerprint(restored.items['params'])
  out.append([restored.step, seal, prints, restored.meta['metrics']])
print('\\n' + json.dumps(out))
"""
_LIST = """
import json, sys
from dpo_jax.storage import files
paths = files.at(sys.argv[1]).rglob('*')
print(json.dumps([str(path) for path in paths]))
"""


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """Runs a module of the package against the bucket; returns what it says."""
  reason = real_bucket.missing()
  if reason:
    pytest.skip(reason)
  folder = tmp_path_factory.mktemp('bucket')
  here, scratch = folder / 'here', folder / 'scratch'
  here.mkdir()
  scratch.mkdir()
  with real_bucket.emulator(folder) as environment:
    environment |= {
      'TMPDIR': str(scratch),
      'HOME': str(here),
      'DPO_JAX_CACHE': 'gs://bkt/cache',
      'XDG_CACHE_HOME': str(here / 'cache'),
      # matplotlib's list of this machine's fonts, which is of no run.
      'MPLCONFIGDIR': str(folder / 'fonts'),
    }
    del environment['JAX_COMPILATION_CACHE_DIR']

    def start(*words, wait=True, code=0):
      process = subprocess.Popen(
        [sys.executable, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=here,
        env=environment,
      )
      if not wait:
        return process
      said = process.communicate(timeout=400)[0]
      assert process.returncode == code, said
      return said

    yield start
  # Nothing beside the bucket, and no copy of what was in it.
  assert os.listdir(here) == [] and os.listdir(scratch) == []


def main(run, *words, **options):
  return run('-m', 'dpo_jax.main', *words, **options)


def listed(run, folder):
  return json.loads(run('-c', _LIST, folder).splitlines()[-1])


@pytest.mark.slow
def test_a_life_in_a_bucket(run, tmp_path):
  # The data, by the ordinary way of a copy.
  rows = synthetic.make_records(200, 0)
  data = tmp_path / 'pairs.jsonl'
  data.write_text(''.join(f'{json.dumps(_row(row))}\n' for row in rows))
  copy = 'import sys; from dpo_jax.storage import files\n'
  copy += 'files.at(sys.argv[2]).put(sys.argv[1])'
  run('-c', copy, str(data), 'gs://bkt/data/pairs.jsonl')
  keys = {'batch_size': 4, 'num_steps': 8, 'eval_every': 4, 'save_every': 2}
  keys = [f'--config.train.{key}={value}' for key, value in keys.items()]
  keys += ['--config.data.eval_pairs=8']
  first = ['--config.data.train=gs://bkt/data/pairs.jsonl', *keys]
  # The same on this machine, and without a stop.
  local = [f'--config.data.train={data}', *keys]
  main(run, CONFIG, f'--workdir={tmp_path}/local', *local)
  main(run, CONFIG, '--workdir=gs://bkt/runs/whole', *first)
  # Killed once step 4 is there, and started again.
  command = [CONFIG, '--workdir=gs://bkt/runs/killed', *first]
  process = main(run, *command, wait=False)
  step = 'gs://bkt/runs/killed/checkpoints/4/commit_success.txt'
  end = time.monotonic() + 200
  while step not in listed(run, 'gs://bkt/runs/killed/checkpoints/4'):
    assert time.monotonic() < end and process.poll() is None
  process.kill()
  process.communicate()
  said = main(run, *command)
  assert 'continuing from step' in said and 'from step 0' not in said
  paths = [f'{tmp_path}/local', 'gs://bkt/runs/whole', 'gs://bkt/runs/killed']
  states = json.loads(run('-c', _READ, *paths).splitlines()[-1])
  # Lines, their digest in the checkpoint, and every bit of the parameters.
  assert states[0] == states[1] == states[2] and states[0][0] == 8
  # A finished run is seen to be done, and one that is written is locked.
  assert 'this run is done' in main(run, *command)

  start = [*first, '--config.model.preset=', '--config.train.num_steps=2']
  start += ['--config.model.init_from=gs://bkt/runs/whole']
  main(run, CONFIG, '--workdir=gs://bkt/runs/next', *start)
  said = main(run, '--mode=evaluate', '--workdir=gs://bkt/runs/killed')
  assert 'gs://bkt/runs/killed/evaluate/evaluate.json' in said
  export = ['--mode=export', '--workdir=gs://bkt/runs/killed']
  main(run, *export, '--export_to=gs://bkt/export/model')
  again = main(run, *export, '--export_to=gs://bkt/export/model', code=2)
  assert 'gs://bkt/export/model: is there already' in again
  names = {path.rpartition('/')[2] for path in listed(run, 'gs://bkt/export')}
  assert names >= {'config.json', 'model.safetensors'}

  sweep = ['--mode=sweep', CONFIG, '--workdir=gs://bkt/sweep', *first]
  sweep += ['--sweep.loss.beta=0.1,0.5', '--sweep.seed=0:2']
  assert '4 points: 4 done' in main(run, *sweep)
  assert '4 points: 4 done' in main(run, *sweep)
  done = [p for p in listed(run, 'gs://bkt/sweep') if p.endswith('/DONE')]
  assert len(done) == 4
  results = ['-m', 'dpo_jax.results']
  run(*results, 'gs://bkt/runs', 'gs://bkt/sweep', '--out=gs://bkt/report')
  said = run(*results, '--verify', 'gs://bkt/report')
  assert 'every cell follows from its runs' in said


def _row(record):
  best = record.comparisons[0]
  return {
    'prompt': record.prompt,
    'chosen': record.completions[best.winner],
    'rejected': record.completions[best.loser],
  }


@pytest.mark.slow
def test_what_cannot_be_written_is_one_line(run):
  for words, line in (
    (['--workdir=gs://nobody/x'], 'gs://nobody/x: there is no bucket'),
    (['--workdir=gs:/bkt/x'], 'has one slash behind the scheme'),
  ):
    said = main(run, CONFIG, *words, code=2)
    assert line in said and said.count('\n') == 1, said
