"""leftovers.py: what a killed process left goes, what others make stays."""

import os
import subprocess
import sys

from dpo_jax.storage import leftovers


def test_only_what_a_dead_process_of_this_host_left_is_removed(tmp_path):
  code = """
import sys
from dpo_jax.storage import leftovers
print(leftovers.name_of('config.json'), leftovers.name_of('key', 'ab12'))
"""
  made = subprocess.run([sys.executable, '-c', code], capture_output=True)
  dead_file, dead_folder = made.stdout.decode().split()
  (tmp_path / dead_file).write_text('{')
  (tmp_path / dead_folder / 'tokens').mkdir(parents=True)
  stays = [
    leftovers.name_of('config.json'),  # of a process that lives: this one
    dead_file.replace(os.uname().nodename.replace('.', '-'), 'other'),
    '.mine.tmp',
    'config.json',
  ]
  for name in stays:
    (tmp_path / name).write_text('')
  leftovers.remove(tmp_path)
  assert sorted(os.listdir(tmp_path)) == sorted(stays)
  leftovers.remove(tmp_path / 'nothing')
