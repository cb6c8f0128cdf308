"""Programs of many_processes.py: one process of a run, changed in one point.

python tests/run/many_workers.py train_all FOLDER STEPS [FLAGS]
python tests/run/many_workers.py late SECONDS FLAGS
python tests/run/many_workers.py stuck RANK STEP FLAGS
"""

import collections
import json
import pathlib
import sys
import time

import many_processes
import numpy as np

from dpo_jax import config as config_lib
from dpo_jax import main as main_lib
from dpo_jax import train
from dpo_jax.data.batches import pipeline
from dpo_jax.run import job, processes, session


def train_all(folder, steps) -> None:
  """Trains all cases, counts the records that this process read."""
  given = dict(x[2:].split('=', 1) for x in sys.argv[4:])
  if given:
    processes.join(processes.find(given))
  reads: dict[str, list] = collections.defaultdict(list)
  _count_reads(lambda step, *lists: reads[case].append(lists))
  for case, changes in many_processes.CASES.items():
    keys = many_processes.SMALL | {'train.num_steps': steps} | changes
    config = config_lib.load(many_processes.EXPERIMENT, list(keys.items()))
    config_lib.validate(config)
    assert train.main(config, f'{folder}/{case}') == 0, case
  rank = given.get('process_id', '0')
  pathlib.Path(f'{folder}/reads_{rank}').write_text(json.dumps(reads))
  sys.exit(processes.leave(0))


def _count_reads(count) -> None:
  """Calls count(step, read, held, batch) at every training batch.

  `read` are the records that this process asked of the token store, `held`
  those of which its rows hold a token, by the rows of the whole batch, `batch`
  those of all rows. A prompt whose answers lie in rows of two processes is held
  by both.
  """
  init, whole = pipeline.Plan.__init__, pipeline.Plan.batch

  def with_seed(self, *args, seed, **more):
    self.seed = seed
    init(self, *args, seed=seed, **more)

  def counted(self, t, store, rows=None):
    if self.seed is None:
      return whole(self, t, store, rows)
    asked = []

    class Asked:
      def read_all(self, indices):
        asked.extend(indices)
        return store.read_all(indices)

    batch = whole(self, t, Asked(), rows)
    id_MRL = whole(self, t, store).rows.completion_id
    own = slice(None) if rows is None else rows
    held, every = (
      _records_of(self, t, ids) for ids in (id_MRL[:, own], id_MRL)
    )
    count(t, sorted(map(int, asked)), held, every)
    return batch

  pipeline.Plan.__init__, pipeline.Plan.batch = with_seed, counted


def _records_of(plan, t, completion_id) -> list[int]:
  """Records of which some rows of a step hold a token, from the rows."""
  per_prompt = plan.num_completions // plan.batch_size
  places = np.unique(completion_id[completion_id >= 0] // per_prompt)
  step = plan.step(t)
  held = {*step.records[places].tolist()}
  if step.others is not None:
    others = step.others.records[places]
    held |= {*others[others >= 0].tolist()}
  return sorted(held)


def main_late(seconds) -> None:
  """The command, whose first process waits before it trains."""
  begin = session.begin

  def late(*args):
    time.sleep(float(seconds) * processes.is_first())
    return begin(*args)

  session.begin = late
  sys.exit(main_lib.main(sys.argv[3:]))


def main_stuck(rank, step) -> None:
  """The command, whose process RANK hangs at a step."""
  batch = job.host_batch

  def stuck(plan, part, t, rows=None):
    if t == int(step) and sys.argv[-1] == f'--process_id={rank}':
      time.sleep(1e6)
    return batch(plan, part, t, rows)

  job.host_batch = stuck
  sys.exit(main_lib.main(sys.argv[4:]))


if __name__ == '__main__':
  name, *words = sys.argv[1:]
  if name == 'train_all':
    train_all(*words[:2])
  elif name == 'late':
    main_late(words[0])
  else:
    main_stuck(*words[:2])
