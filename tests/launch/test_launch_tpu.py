"""scripts/launch_tpu.sh: one TPU from its launch to its deletion, by stubs."""

import pathlib
import tarfile

import checkout
import pytest

FLAGS = ('--name=me', '--zone=z', '--bucket=gs://b')
START = (*FLAGS, '--type=v5e-16', '--', '--config=x.py', checkout.WORKDIR)
# A bucket that is a folder; TPUs are only noted.
GCLOUD = """
file=$BUCKET/${@: -1}
case "$1 $2" in
  'storage cp') mkdir -p "$(dirname "$file")" && cat >"$file" ;;
  'storage cat') cat "$file" ;;
  'storage rm') for name in "${@:3}"; do rm "$BUCKET/$name" || exit; done ;;
  'compute tpus')
    [ "$4" != create ] || {
      cat "${@: -1:1}" 2>/dev/null
      last=${@: -1}
      cat "${last#*startup-script=}" >"$BUCKET/startup.sh"
      exit ${CREATED:-0}
    } ;;
esac
"""
# uv makes an environment whose python notes its words.
PYTHON = """
[ "$2 $3" = 'uv venv' ] || exit 0
mkdir -p venv/bin
printf '#!/bin/bash\\necho code: *\\nfor w in "$@"; do echo "<$w>"; done\\n' \\
  >venv/bin/python
chmod +x venv/bin/python
"""


@pytest.fixture
def user(tmp_path):
  """A checkout with a bucket."""
  made = checkout.Checkout(tmp_path)
  made.bucket = tmp_path / 'bucket'
  made.bucket.mkdir()
  made.variables = {'BUCKET': str(made.bucket)}
  made.stub('gcloud', GCLOUD)
  return made


def run(user, *words, **more):
  """Runs the script against the bucket."""
  return user.run('launch_tpu.sh', *words, **user.variables, **more)


def objects(user):
  """What is in the bucket."""
  return [n for n in checkout.names(user.bucket) if n != 'startup.sh']


CODE, MADE = 'gs:/b/launch/me/code.tar.gz', 'gs:/b/launch/me/made'


def test_a_tpu_runs_the_command_at_every_start(user, tmp_path):
  (user.path / 'new.py').write_text('')
  (user.path / 'ignored').write_text('')
  assert run(user, *START).returncode == 2
  assert not objects(user)
  done = run(user, '--uncommitted', '--spot', *START)
  assert done.returncode == 0, done.stderr
  assert objects(user) == [CODE, MADE]
  with tarfile.open(user.bucket / CODE) as archive:
    held = archive.getnames()
  assert 'new.py' in held and 'ignored' not in held
  (create,) = [c for c in user.calls() if 'create' in c]
  assert create[:5] == ['compute', 'tpus', 'queued-resources', 'create', 'me']
  assert {'--accelerator-type=v5litepod-16', '--spot', '--zone=z'} <= {*create}
  # The machine starts twice.
  user.stub('python3', PYTHON)
  user.stub('systemctl')
  user.stub('systemd-run', 'exec "${@: -1}"\n')
  home = tmp_path / 'a home'
  for starts in (1, 2):
    text = user.bucket / 'startup.sh'
    variables = user.variables | {'DPO_JAX_HOME': str(home)}
    said = user.run(str(text), **variables)
    assert said.returncode == 0, said.stderr
    words = [line for line in said.stdout.splitlines() if line[0] == '<']
    expected = ['-m', 'dpo_jax.main', '--config=x.py', checkout.WORKDIR]
    assert words == [f'<{word}>' for word in expected]
    assert 'new.py' in said.stdout  # it runs among the code
    installs = [c for c in user.calls() if c[:3] == ['-m', 'uv', 'venv']]
    assert len(installs) == 1, starts
  (restart,) = {
    tuple(w for w in c if 'Restart=' in w or 'RestartPrevent' in w)
    for c in user.calls()
    if '--unit=dpo_jax' in c
  }
  # 143, 3 and 134 come again; bad input and a diverged run do not.
  assert [w.partition('=')[2] for w in restart] == [
    'Restart=on-failure',
    'RestartPreventExitStatus=1 2',
  ]


def test_only_what_was_made_is_deleted(user):
  kept = ('gs:/b/launch/other/made', 'gs:/b/launch/me/notes', 'gs:/b/run/DONE')
  for name in kept:
    path = user.bucket / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('me z ')
  delete = ('--delete', *FLAGS)
  # A TPU of that name that somebody else made.
  done = run(user, *delete)
  assert done.returncode == 2 and 'was not launched from here' in done.stderr
  assert run(user, *START).returncode == 0
  again = run(user, *START)
  assert again.returncode == 2 and 'was launched already' in again.stderr
  done = run(user, '--delete', '--name=me', '--zone=y', '--bucket=gs://b')
  assert done.returncode == 2
  assert not [c for c in user.calls() if 'delete' in c]
  before = objects(user)
  shown = run(user, '--dry-run', *delete)
  assert 'queued-resources delete me' in shown.stdout
  assert objects(user) == before
  assert run(user, *delete).returncode == 0
  assert objects(user) == sorted(kept)
  (deleted,) = [c for c in user.calls() if 'delete' in c]
  assert deleted[3:5] == ['delete', 'me']
  assert not checkout.names(pathlib.Path(user.scratch))


def test_a_tpu_that_was_not_made_is_not_marked(user):
  done = run(user, *START, CREATED='1')
  assert done.returncode == 1
  assert not objects(user)
  assert run(user, '--delete', *FLAGS).returncode == 2
