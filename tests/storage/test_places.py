"""places.py: one place as seen from another."""

import os

import pytest

from dpo_jax.storage import files, places
from dpo_jax.types import InputError


@pytest.mark.parametrize(
  'path, base, name',
  [
    ('mem://bkt/runs/a', 'mem://bkt/report', '../runs/a'),
    ('mem://bkt/a', 'mem://bkt', 'a'),
    ('mem://bkt/a', 'mem://other/report', 'mem://bkt/a'),
    ('mem://bkt/a', '/report', 'mem://bkt/a'),
    ('/runs/a', 'mem://bkt/report', '/runs/a'),
    ('/runs/a', '/report', '../runs/a'),
  ],
)
def test_a_name_leads_back_to_its_place(bucket, path, base, name):
  assert places.relative(path, base) == name
  back = places.join(base, name)
  assert os.path.normpath(str(back)) == os.path.normpath(str(files.at(path)))


def test_what_a_folder_holds(bucket, tmp_path):
  for folder in (bucket, tmp_path):
    for name in ('b', 'a/c'):
      (folder / name).parent.mkdir(parents=True, exist_ok=True)
      (folder / name).write_bytes(b'')
    listed = [(path.name, is_dir) for path, is_dir in places.entries(folder)]
    assert listed == [('a', True), ('b', False)]
    assert places.exists(f'{folder}/a') and places.is_folder(f'{folder}/a')
    assert places.is_file(f'{folder}/b') and not places.exists(f'{folder}/x')


def test_a_link_and_a_pipe_in_a_run_are_refused(tmp_path):
  run, beside = tmp_path / 'run', tmp_path / 'beside'
  places.refuse_strange(run)  # not there yet
  for folder in (run / 'checkpoints', beside):
    folder.mkdir(parents=True)
  (run / 'DONE').write_text('{}')
  os.symlink(run, tmp_path / 'link')
  places.refuse_strange(tmp_path / 'link')
  os.mkfifo(run / 'env.json')
  with pytest.raises(InputError, match=f'{run}/env.json: not a regular file'):
    places.refuse_strange(run)
  (run / 'env.json').unlink()
  for target in (beside, tmp_path / 'gone'):
    os.symlink(target, run / 'samples')
    with pytest.raises(InputError, match='samples: a link to .*; fix: put'):
      places.refuse_strange(run)
    (run / 'samples').unlink()
  with pytest.raises(InputError, match='DONE: a file; fix: give --workdir'):
    places.refuse_strange(run / 'DONE')
