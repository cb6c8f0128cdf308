"""A Slurm of two nodes on this machine, for one test: daemons of its own.

Comes in: an empty folder. Goes out: the environment in which sbatch, squeue and
scontrol speak to it. Two slurmd with names of their own stand for two nodes.
"""

import contextlib
import os
import pathlib
import shutil
import socket
import subprocess
import time

PROGRAMS = ('munged', 'slurmctld', 'slurmd', 'sbatch', 'scontrol')
PACKAGES = ('munge', 'slurmctld', 'slurmd', 'slurm-client')
NODES = ('left', 'right')


def missing() -> str:
  """Why there can be no Slurm here, in a line; '' if there can.

  With DPO_JAX_REAL_PARTS=1 in the environment, Debian's packages are installed
  where they are missing. Without it nothing is started: a requeue alone takes
  Slurm two minutes.
  """
  if not os.environ.get('DPO_JAX_REAL_PARTS'):
    return 'set DPO_JAX_REAL_PARTS=1 to start a Slurm for this test'
  if os.geteuid():
    return 'a Slurm of its own needs root'
  if not all(map(shutil.which, PROGRAMS)):
    install = ['apt-get', 'install', '-y', '--no-install-recommends', *PACKAGES]
    for command in (['apt-get', 'update'], install):
      done = subprocess.run(command, capture_output=True, text=True)
      if done.returncode:
        return f'apt-get {command[1]} failed: {done.stderr.strip()[-200:]}'
  return ''


@contextlib.contextmanager
def cluster(folder: pathlib.Path):
  """Starts the daemons; yields the variables of a client; stops them."""
  folder.chmod(0o755)
  config, socket_path = folder / 'slurm.conf', folder / 'munge.socket'
  config.write_text(_config(folder, socket_path))
  key = folder / 'munge.key'
  key.write_bytes(os.urandom(1024))
  key.chmod(0o600)
  (folder / 'state').mkdir()
  munge = [f'--key-file={key}', f'--socket={socket_path}', '--foreground']
  munge += [f'--pid-file={folder}/munge.pid', f'--seed-file={folder}/seed']
  munge += [f'--log-file={folder}/munge.log', '--force']
  commands = [['munged', *munge], ['slurmctld', '-D', '-f', str(config)]]
  commands += [['slurmd', '-D', '-N', n, '-f', str(config)] for n in NODES]
  environment = dict(os.environ, SLURM_CONF=str(config))
  daemons = []
  # Processes of a job find the first node by its name.
  hosts = pathlib.Path('/etc/hosts')
  before = hosts.read_text()
  try:
    hosts.write_text(f'{before}\n127.0.0.1 {" ".join(NODES)}\n')
    for command in commands:
      daemons.append(
        subprocess.Popen(
          command,
          stdout=subprocess.DEVNULL,
          stderr=subprocess.DEVNULL,
          env=environment,
        )
      )
      time.sleep(1.0)  # munged has to be there before the others
    for _ in range(60):
      states = run(environment, 'sinfo', '--noheader', '--Node', '-o', '%t')
      if states.split() == ['idle'] * len(NODES):
        break
      time.sleep(0.5)
    else:
      raise AssertionError(f'the nodes are {states!r}')
    yield environment
  finally:
    hosts.write_text(before)
    for daemon in reversed(daemons):
      daemon.terminate()
    for daemon in daemons:
      daemon.wait(timeout=30)


def run(environment, *command: str) -> str:
  """The output of a command of the client."""
  done = subprocess.run(
    command, env=environment, capture_output=True, text=True, timeout=60
  )
  return done.stdout


def _config(folder: pathlib.Path, socket_path: pathlib.Path) -> str:
  host = socket.gethostname().partition('.')[0]
  lines = [
    'ClusterName=test',
    f'SlurmctldHost={host}(127.0.0.1)',
    f'SlurmctldPort={_port()}',
    'SlurmUser=root',
    'SlurmdUser=root',
    'AuthType=auth/munge',
    f'AuthInfo=socket={socket_path}',
    f'StateSaveLocation={folder}/state',
    f'SlurmdSpoolDir={folder}/spool-%n',
    f'SlurmctldPidFile={folder}/slurmctld.pid',
    f'SlurmdPidFile={folder}/slurmd-%n.pid',
    f'SlurmctldLogFile={folder}/slurmctld.log',
    f'SlurmdLogFile={folder}/slurmd-%n.log',
    'ProctrackType=proctrack/linuxproc',
    'TaskPlugin=task/none',
    'MpiDefault=none',
    'SelectType=select/cons_tres',
    'SelectTypeParameters=CR_Core',
    'ReturnToService=2',
    'JobRequeue=1',
  ]
  lines += [
    f'NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={_port()} '
    'CPUs=2 RealMemory=2000'
    for node in NODES
  ]
  lines.append(
    f'PartitionName=all Nodes={",".join(NODES)} Default=YES MaxTime=INFINITE'
  )
  return '\n'.join(lines) + '\n'


def _port() -> int:
  """A port that nobody listens on."""
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    return free.getsockname()[1]
