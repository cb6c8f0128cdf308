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


def test_variables_of_jax_are_part_of_the_environment(monkeypatch):
  before = environment.describe({}, [])
  monkeypatch.setenv('JAX_DISABLE_MOST_OPTIMIZATIONS', '1')
  monkeypatch.setenv('JAX_COMPILATION_CACHE_DIR', 'elsewhere')
  assert environment.changes(before, environment.describe({}, [])) == [
    "jax_variables.JAX_DISABLE_MOST_OPTIMIZATIONS: 'nothing' then, '1' now"
  ]
