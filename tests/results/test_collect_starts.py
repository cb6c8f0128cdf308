"""Groups of runs that start from runs: one start for all seeds, or one each."""

from dpo_jax.results import collect


def _groups(tmp_path) -> list[list[str]]:
  groups = collect.group_runs(collect.collect([tmp_path / 'dpo']))
  return [[run.path.name for run in group.runs] for group in groups]


def _start(make_run, name, seed):
  path = make_run(f'sft/{name}', {'stage': 'sft', 'seed': seed})
  (path / 'model.json').write_text('{}')
  return str(path)


def test_seeds_from_one_start_are_a_group(make_run, tmp_path):
  # Also the seed that is the start's own.
  start = _start(make_run, 'a', 0)
  for seed in (0, 1, 2):
    make_run(f'dpo/{seed}', {'seed': seed, 'model': {'init_from': start}})
  assert _groups(tmp_path) == [['0', '1', '2']]


def test_seeds_from_the_seeds_of_one_start_are_a_group(make_run, tmp_path):
  for seed in (0, 1):
    start = _start(make_run, f'a{seed}', seed)
    make_run(f'dpo/{seed}', {'seed': seed, 'model': {'init_from': start}})
  assert _groups(tmp_path) == [['0', '1']]


def test_one_start_and_a_start_per_seed_are_two_groups(make_run, tmp_path):
  starts = [_start(make_run, f'a{seed}', seed) for seed in (0, 1)]
  for seed, start in enumerate(starts):
    make_run(f'dpo/own{seed}', {'seed': seed, 'model': {'init_from': start}})
  make_run('dpo/same1', {'seed': 1, 'model': {'init_from': starts[0]}})
  assert _groups(tmp_path) == [['own0', 'own1'], ['same1']]
