"""All of scripts/launch_*: quoting, missing tools, uncommitted changes."""

import shlex

import checkout
import pytest

TPU = ('--name=me', '--type=v5e-16', '--zone=z', '--bucket=gs://b')
GKE = ('--name=me', '--type=v5e-16', '--cluster=c')
# {script: (its words before ARGS, the tool that it needs)}
SCRIPTS = {
  'launch_local.sh': (('2', '--'), 'python'),
  'launch_slurm.sbatch': ((), 'srun'),
  'launch_tpu.sh': ((*TPU, '--'), 'gcloud'),
  'launch_gke.sh': ((*GKE, '--'), 'gcluster'),
  'launch_gke.sh --xpk': ((*GKE, '--'), 'xpk'),
}


@pytest.fixture
def user(tmp_path):
  """A checkout."""
  return checkout.Checkout(tmp_path)


def command(script, before, *flags):
  """The command line of a script, with a workdir that needs quotes."""
  name, *more = script.split()
  return name, *flags, *more, *before, '--config=x.py', checkout.WORKDIR


@pytest.mark.parametrize('script', SCRIPTS)
def test_a_dry_run_quotes_what_a_shell_reads_back(script, user):
  before, _ = SCRIPTS[script]
  done = user.run(*command(script, before, '--dry-run'))
  assert done.returncode == 0, done.stderr
  text = done.stdout.replace('startup.sh: ', '')
  if 'gke' in script:
    text = shlex.split(text)[-1].removeprefix('--command=')
  (line, *_) = [x for x in text.splitlines() if 'dpo_jax.main' in x]
  words = shlex.split(line)
  at = words.index('dpo_jax.main')
  assert words[at - 1] == '-m'
  assert words[at + 1 : at + 3] == ['--config=x.py', checkout.WORKDIR]
  assert not user.calls() and not checkout.names(user.scratch)


@pytest.mark.parametrize('script', SCRIPTS)
def test_a_tool_that_is_missing_is_one_line(script, user):
  before, tool = SCRIPTS[script]
  done = user.run(*command(script, before))
  assert done.returncode == 2
  assert done.stderr.splitlines()[-1].startswith(
    f'{tool} is not installed; fix'
  )
  assert len(done.stderr.splitlines()) == 1 and not done.stdout


@pytest.mark.parametrize('script', SCRIPTS)
def test_uncommitted_changes_are_refused_unless_told(script, user):
  before, _ = SCRIPTS[script]
  words = command(script, before, '--dry-run')
  (user.path / 'ignored').write_text('')
  assert user.run(*words).returncode == 0
  (user.path / 'new.py').write_text('')
  done = user.run(*words)
  assert done.returncode == 2 and not done.stdout
  assert done.stderr.startswith('uncommitted changes (new.py); fix: ')
  assert user.run(*words, DPO_JAX_UNCOMMITTED='1').returncode == 0


@pytest.mark.parametrize(
  ('words', 'problem'),
  [
    (('launch_tpu.sh', '--zone=z', '--', 'x'), "--name='' is not a name"),
    (('launch_tpu.sh', '--name=a b', '--', 'x'), "--name='a b' is not a name"),
    (('launch_tpu.sh', *TPU, '--spott', '--', 'x'), '--spott: not a flag'),
    (('launch_tpu.sh', *TPU), '-- ARGS is missing'),
    (('launch_tpu.sh', *TPU, '--type=v9-1', '--', 'x'), "--type='v9-1' is not"),
    (('launch_tpu.sh', *TPU, '--bucket=b', '--', 'x'), "--bucket='b' is not"),
    (('launch_gke.sh', '--name=me', '--', 'x'), '--type is missing'),
    (('launch_gke.sh', *GKE), '-- ARGS is missing'),
    (('launch_local.sh', '--dryrun', '2', '--', 'x'), '--dryrun: not a flag'),
  ],
)
def test_a_wrong_call_is_one_line(words, problem, user):
  done = user.run(words[0], '--dry-run', *words[1:])
  assert done.returncode == 2 and not done.stdout
  assert done.stderr.startswith(problem) and 'fix: ' in done.stderr
  assert done.stderr.count('\n') == 1


@pytest.mark.parametrize(
  ('image', 'expected'),
  [
    ('a image.sif', ['srun', '--kill-on-bad-exit=1', 'apptainer', 'exec']),
    (
      'ghcr.io#a/b',
      ['srun', '--kill-on-bad-exit=1', '--container-image=ghcr.io#a/b'],
    ),
  ],
)
def test_slurm_runs_in_a_container(image, expected, user):
  variables = {'DPO_JAX_CONTAINER': image, 'DPO_JAX_CONTAINER_MOUNTS': '/d:/d'}
  done = user.run('launch_slurm.sbatch', '--dry-run', 'x', **variables)
  words = shlex.split(done.stdout)
  assert words[: len(expected)] == expected
  assert any(word.endswith(f'{user.path}:{user.path},/d:/d') for word in words)
  assert words[-4:] == ['python', '-m', 'dpo_jax.main', 'x']
  assert ('a image.sif' in words) == image.endswith('.sif')


def test_processes_of_a_host_know_how_many_they_are(user):
  user.stub('python', 'echo "${DPO_JAX_PROCESSES_PER_HOST:-none}"\n')
  done = user.run('launch_local.sh', '2', '--', 'x', JAX_PLATFORMS='cpu')
  assert sorted(done.stdout.splitlines()) == ['[0] 2', '[1] 2']
