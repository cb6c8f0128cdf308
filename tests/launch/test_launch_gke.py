"""scripts/launch_gke.sh: the call of gcluster and xpk, and its code."""

import os
import pathlib
import shlex
import subprocess
import sys

import checkout
import pytest

FLAGS = ('--name=me', '--type=v5e-16', '--cluster=c')
ARGS = ('--config=x.py', checkout.WORKDIR)
# Shows the folder that is to become an image.
TOOL = """
for word in "$@"; do
  case $word in
    --build-context=*) cd "${word#*=}" && echo app/* .gitignore* ;;
    --script-dir=*) cd "${word#*=}" && echo * ;;
  esac
done
exit 5
"""


@pytest.fixture
def user(tmp_path):
  """A checkout with both tools."""
  made = checkout.Checkout(tmp_path)
  for tool in ('gcluster', 'xpk'):
    made.stub(tool, TOOL)
  return made


@pytest.mark.parametrize('flags', [(), ('--xpk',)])
def test_the_code_of_the_commit_becomes_an_image(flags, user):
  (user.scratch / 'bystander').write_text('')
  done = user.run('launch_gke.sh', *flags, *FLAGS, '--', *ARGS)
  assert done.returncode == 5  # the tool's own
  assert 'requirements.txt' in done.stdout
  assert checkout.names(user.scratch) == ['bystander']
  (call,) = user.calls()
  assert '--cluster=c' in call
  line = call[-1].removeprefix('--command=')
  assert line.startswith('cd /app && python -m pip install')
  assert "'jax[tpu]" in line or 'jax\\[tpu\\]' in line
  words = shlex.split(line.rpartition(' && ')[2])
  assert words == ['exec', 'python', '-m', 'dpo_jax.main', *ARGS]


def test_an_image_of_ones_own_is_used_as_it_is(user):
  flags = (*FLAGS, '--image=r/i:1')
  user.run('launch_gke.sh', *flags, '--num-slices=2', '--', 'x')
  (call,) = user.calls()
  assert {'--image=r/i:1', '--num-slices=2'} <= {*call}
  assert call[-1] == '--command=exec python -m dpo_jax.main x'
  assert not [word for word in call if 'base-image' in word]


@pytest.mark.slow
def test_the_real_tools_take_what_the_scripts_give(user, tmp_path):
  """xpk makes its manifest, SkyPilot reads its task."""
  if not os.environ.get('DPO_JAX_REAL_PARTS'):
    pytest.skip('set DPO_JAX_REAL_PARTS=1 to install xpk and SkyPilot')
  # Apart, since each pins packages of the other. Minutes, unless a folder keeps
  # them from one time to the next.
  kept, bins = pathlib.Path(os.environ.get('DPO_JAX_TOOLS') or tmp_path), {}
  for package in ('xpk==1.16.0', 'skypilot==0.14.1'):
    venv = kept / package.partition('=')[0]
    bins[venv.name] = venv / 'bin'
    if not venv.exists():
      subprocess.run([sys.executable, '-m', 'venv', str(venv)], check=True)
      install = [str(venv / 'bin/pip'), 'install', '-q', package]
      subprocess.run(install, check=True, capture_output=True)
  xpk = bins['xpk']
  user.stub('xpk', f'exec {shlex.quote(str(xpk / "xpk"))} "$@" --dry-run')
  done = user.run(
    *('launch_gke.sh', '--xpk', *FLAGS, '--zone=us-central1-a'),
    *('--project=p', '--skip-validation', '--image=python:3.11', '--', *ARGS),
    PATH=f'{user.tools}:{xpk}:{os.environ["PATH"]}',
  )
  assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
  shown = ' '.join(map(shlex.quote, ARGS))
  (line,) = [x for x in done.stdout.splitlines() if 'exec python -m' in x]
  words = shlex.split(line.strip(' ()').partition(') & PID')[0])
  assert words == ['exec', 'python', '-m', 'dpo_jax.main', *ARGS], shown
  code = (
    'import sky, sys, yaml; given = yaml.safe_load(open(sys.argv[1]));'
    'task = sky.Task.from_yaml_config(given, '
    'env_overrides=[("ARGS", "--config=x")]);'
    'print(task.num_nodes, [r.accelerators for r in task.resources])'
  )
  said = subprocess.run(
    [str(bins['skypilot'] / 'python'), '-c', code]
    + [str(checkout.ROOT / 'scripts/skypilot.yaml')],
    capture_output=True,
    text=True,
    env=os.environ | {'HOME': str(tmp_path)},
    cwd=tmp_path,
  )
  assert said.stdout.splitlines()[-1:] == ["1 [{'H100': 8}]"], said.stderr


def test_a_node_of_skypilot_joins_the_others(user):
  # The text of `run` in the task, as SkyPilot gives it to bash.
  task = (checkout.ROOT / 'scripts/skypilot.yaml').read_text()
  text = task.partition('\nrun: |\n')[2].replace('\n  ', '\n').lstrip()
  script = user.path / 'scripts' / 'run.sh'
  script.write_text(text)
  python = pathlib.Path(user.scratch) / 'dpo_jax_venv/bin/python'
  python.parent.mkdir(parents=True)
  user.stub('noted')
  python.symlink_to(user.tools / 'noted')
  user.stub('nvidia-smi')
  user.run(
    'run.sh',
    ARGS=shlex.join(ARGS),
    SKYPILOT_NUM_NODES='2',
    SKYPILOT_NODE_RANK='1',
    SKYPILOT_NODE_IPS='10.0.0.1\n10.0.0.2',
  )
  expected = ['-m', 'dpo_jax.main', *ARGS]
  expected += ['--coordinator_address=10.0.0.1:8476', '--num_processes=2']
  assert user.calls() == [[*expected, '--process_id=1']]
