"""processes: who joins, and two real processes that end and go on together."""

import pathlib
import signal

import commands
import many_processes as many
import pytest

from dpo_jax.run import processes
from dpo_jax.types import InputError

BARE = {
  'coordinator_address': 'host:1234',
  'num_processes': '2',
  'process_id': '1',
}
SLURM = {
  'SLURM_JOB_ID': '7',
  'SLURM_STEP_NODELIST': 'n[1-2]',
  'SLURM_PROCID': '1',
  'SLURM_LOCALID': '0',
  'SLURM_NTASKS': '2',
}
TPU = {'TPU_WORKER_HOSTNAMES': 'a,b', 'JAX_PLATFORMS': 'tpu'}


@pytest.mark.parametrize(
  ('given', 'environ', 'joins'),
  [
    ({}, {}, False),
    (BARE, {}, True),
    ({'distributed': 'on'}, {}, True),
    ({}, SLURM, True),
    # srun -n 1, and a step that is one of an array.
    ({}, SLURM | {'SLURM_NTASKS': '1'}, False),
    # The shell of sbatch itself is in no step.
    ({}, {'SLURM_JOB_ID': '7', 'SLURM_NTASKS': '2'}, False),
    ({'distributed': 'off'}, SLURM, False),
    ({}, TPU, True),
    ({}, TPU | {'TPU_WORKER_HOSTNAMES': 'localhost'}, False),
    ({}, TPU | {'JAX_PLATFORMS': 'cpu'}, False),
  ],
)
def test_several_processes_are_found(given, environ, joins):
  processes.check_flags(given)
  assert (processes.find(given, environ) is not None) == joins


def test_the_only_task_of_a_node_takes_all_its_gpus():
  # jax alone takes one device per task of Slurm.
  node = SLURM | {'SLURM_GPUS_ON_NODE': '8'}
  alone = processes.find({}, node | {'SLURM_STEP_TASKS_PER_NODE': '1(x2)'})
  assert alone.devices == list(range(8))
  eight = processes.find({}, node | {'SLURM_STEP_TASKS_PER_NODE': '8(x2)'})
  assert eight.devices is None


@pytest.mark.parametrize(
  ('given', 'flag'),
  [
    ({'distributed': 'onn'}, '--distributed'),
    (BARE | {'distributed': 'off'}, '--coordinator_address'),
    ({'num_processes': '2'}, '--coordinator_address'),
    (BARE | {'process_id': '2'}, '--process_id'),
    (BARE | {'num_processes': 'two'}, '--num_processes'),
    (BARE | {'coordinator_address': 'host'}, '--coordinator_address'),
  ],
)
def test_flags_that_nobody_can_join_by_are_refused(given, flag):
  with pytest.raises(InputError, match=f'^{flag}: '):
    processes.check_flags(given)


def test_a_heartbeat_is_a_number_of_seconds():
  assert processes.heartbeat({processes.HEARTBEAT: '10'}) == 10
  with pytest.raises(InputError, match='DPO_JAX_HEARTBEAT'):
    processes.heartbeat({processes.HEARTBEAT: 'soon'})


def test_alone_every_agreement_is_ones_own():
  assert processes.is_first() and processes.count() == 1
  assert processes.together(lambda: 3) == processes.first_then_all(lambda: 3)
  assert processes.of_first('x') == 'x' and processes.all_true(True)
  assert processes.leave(5) == 5


def test_two_processes_stop_together_and_go_on(tmp_path):
  run, out = tmp_path / 'run', tmp_path / 'out'
  arguments = many.flags(run, 30, **{'train.batch_size': '4'})
  arguments.append(commands.write_good(tmp_path))
  started = many.start(out, arguments)
  # The first update compiles now: the signal waits for the poll after it.
  many.wait_for(run, 0, started, split='eval')
  started[1].send_signal(signal.SIGTERM)
  assert many.ended(started) == [143, 143]
  said = (out / '0').read_text()
  assert said.count('stopped by SIGTERM') == 1
  assert 'SIGTERM' not in (out / '1').read_text()
  cut = max(line['step'] for line in many.lines(run))
  assert 0 < cut < 30
  assert (run / 'checkpoints' / str(cut)).is_dir()
  # One process with both devices goes on where two processes stopped.
  assert many.ended(many.start(out, arguments, 1, 2)) == [0]
  assert f'continuing from step {cut} of 30' in (out / '0').read_text()
  written = [(x['step'], x['split']) for x in many.lines(run)]
  assert len(written) == len(set(written)) == 30 + 2
  assert (run / 'DONE').exists()


def test_what_one_process_refuses_ends_all_with_one_line(tmp_path):
  run = tmp_path / 'run'
  address = [f'--coordinator_address=localhost:{many.port()}']
  address += ['--num_processes=2']
  started = []
  for rank, more in enumerate(([], ['--config.data.train=nowhere.jsonl'])):
    arguments = [*many.flags(run, 2), *more, *address, f'--process_id={rank}']
    # Each is started by itself: only their arguments differ.
    started += many.start(tmp_path / str(rank), arguments, 1)
  assert many.ended(started) == [2, 2]
  said = [(tmp_path / str(rank) / '0').read_text() for rank in (0, 1)]
  assert said[0].count('\n') == 1 and 'nowhere.jsonl' in said[0]
  assert said[1] == ''
  assert not run.exists()
  assert not pathlib.Path('nowhere.jsonl').exists()
