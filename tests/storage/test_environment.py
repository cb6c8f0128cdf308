"""environment.py: what bits depend on, and which changes matter."""

from dpo_jax.storage import environment


def test_git_absent_is_tolerated(monkeypatch):
  monkeypatch.setenv('PATH', '')
  assert environment.describe({})['git_commit'] is None


def test_changes_between_environments():
  old = {'jax': '1', 'time': 'a', 'optax': '2'}
  assert environment.changes(old, old | {'time': 'b'}) == []
  assert environment.changes(old, {'jax': '3', 'new': None}) == [
    "jax: '1' then, '3' now",
    "new: 'nothing' then, None now",
    "optax: '2' then, 'nothing' now",
  ]
