"""bad_steps: a bad update changes nothing; it is skipped, or replayed."""

import json
import re

import numpy as np
from commands import CONFIG

from dpo_jax import main as main_lib
from dpo_jax import tree
from dpo_jax.run import job as job_lib
from dpo_jax.storage import checkpoints

FLAGS = [
  CONFIG,
  '--config.train.save_every=1',
  '--config.train.num_steps=6',
  '--config.train.keep_checkpoints=9',
]


def poison(monkeypatch, *steps):
  """Makes the weights of the batches of these steps, from 0, NaN."""
  host_batch = job_lib.host_batch

  def poisoned(plan, part, t, rows=None):
    batch = host_batch(plan, part, t, rows)
    if t not in steps:
      return batch
    weight = np.full_like(batch.comparisons.weight, np.nan)
    return batch._replace(comparisons=batch.comparisons._replace(weight=weight))

  monkeypatch.setattr(job_lib, 'host_batch', poisoned)


def fingerprints(workdir, step):
  """Those of parameters and moments."""
  with checkpoints.Checkpoints(workdir / 'checkpoints') as saved:
    items = saved.restore(
      step, {'params': None, 'opt_state': None}, partial=True
    ).items
  return tree.fingerprint(dict(tree.flatten_with_names(items)))


def train_lines(workdir):
  text = (workdir / 'metrics.jsonl').read_text()
  lines = map(json.loads, text.splitlines())
  return {x['step']: x for x in lines if x['split'] == 'train'}


def test_a_bad_step_is_skipped_the_next_ends_the_run_and_is_replayed(
  tmp_path, monkeypatch, capsys
):
  run = [*FLAGS, f'--workdir={tmp_path}', '--config.train.skip_bad_steps=1']
  poison(monkeypatch, 1, 4)
  assert main_lib.main(run) == 1
  said = capsys.readouterr()
  # The second of six is skipped: nothing but its number went on.
  assert re.search(r'^step 2: \S+ is nan; skipped \(1 of ', said.out, re.M)
  assert train_lines(tmp_path)[2]['skipped'] == 1
  assert 'skipped' not in train_lines(tmp_path)[3]
  assert fingerprints(tmp_path, 1) == fingerprints(tmp_path, 2)
  assert fingerprints(tmp_path, 3) != fingerprints(tmp_path, 2)
  # The fifth ends the run. One line, no checkpoint, and how to see it again.
  assert re.match(r'step 5: \S+ is nan; nothing of this step is', said.err)
  assert said.err.count('\n') == 1 and said.err.count('fix: ') == 1
  command = f'--mode=replay --workdir={tmp_path} --step=5'
  assert said.err.endswith(f'python -m dpo_jax.main {command}\n')
  kept = json.loads((tmp_path / 'replay' / '5' / 'replay.json').read_text())
  assert len(kept['records']) == 8 and len(kept['key']) == 2
  # The batch is taken from the folder: the data is sound again.
  monkeypatch.undo()
  assert main_lib.main(command.split()) == 0
  out = capsys.readouterr().out
  assert f'all {len(kept["bits"])} numbers have the bits' in out
  assert f'records: {", ".join(kept["records"])}' in out
  # Other weights give other bits, and that is said.
  bits = kept['bits'] | {'learning_rate': '0.5 0000003f'}
  path = tmp_path / 'replay' / '5' / 'replay.json'
  path.write_text(json.dumps(kept | {'bits': bits}))
  assert main_lib.main(command.split()) == 1
  assert 'learning_rate: 0.5 0000003f in the run, ' in capsys.readouterr().out
  assert main_lib.main([*command.split()[:-1], '--step=3']) == 2
  assert 'use one of 5; ' in capsys.readouterr().err
  # What was skipped counts after a restart too.
  assert main_lib.main([*FLAGS, f'--workdir={tmp_path}']) == 2
  assert '0, and 1 steps were skipped already' in capsys.readouterr().err
  assert main_lib.main(run) == 0
  assert 'skipped: 1 updates' in capsys.readouterr().out
  assert json.loads((tmp_path / 'DONE').read_text())['skipped'] == 1
