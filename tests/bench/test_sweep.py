"""The benchmark of a sweep: which commands it measures, and its arithmetic."""

from dpo_jax.bench import sweep


def test_commands_are_counted_for_all_points_and_compared(monkeypatch):
  run = []

  def measured(words, workdir, caches):
    run.append((words, workdir.name, caches.name))
    is_swept = '--mode=sweep' in words
    first = len({name for _, _, name in run}) == len(run)
    return sweep._Cost(30.0, 12.0) if is_swept else sweep._Cost(8.0, 3 + first)

  monkeypatch.setattr(sweep, '_run', measured)
  options = sweep.Options(betas=2, seeds=3, commands=2, alone=2)
  lines = sweep.run(options).splitlines()
  cells = [[cell.strip() for cell in line.split('|')] for line in lines[2:]]
  assert [row[1:] for row in cells] == [
    # 6 points; two commands of 8 wall and 4 CPU seconds.
    ['6 commands, empty caches (2 measured)']
    + ['48', '24', '4.0', '1.0', '1.0', ''],
    # The second of them finds the caches of the first: 4 + 3 CPU seconds.
    ['6 commands, shared caches (2 measured)']
    + ['48', '21', '3.5', '1.0', '1.1', ''],
    ['a sweep of 6 points, loop', '30', '12', '2.0', '1.6', '2.0', ''],
  ]
  caches = [name for _, _, name in run]
  assert caches == ['own0', 'own1', 'caches', 'caches', 'caches_loop']
  assert len({name for _, name, _ in run}) == len(run)
  assert '--config.loss.beta=0.1' in run[1][0]
  assert '--config.seed=1' in run[1][0]
  assert '--sweep.loss.beta=0.05,0.1' in run[-1][0]
  assert '--sweep.seed=0:3' in run[-1][0]


def test_a_process_per_core_is_a_way_of_its_own(monkeypatch):
  run = []
  monkeypatch.setattr(
    sweep, '_run', lambda words, *_: run.append(words) or sweep._Cost(2.0, 1.0)
  )
  options = sweep.Options(betas=2, seeds=1, commands=1, alone=0, modes=())
  lines = sweep.run(options._replace(cores_per_point=1)).splitlines()
  assert [line.split('|')[1].strip() for line in lines[2:]] == [
    '2 commands, shared caches (1 measured)',
    'a sweep of 2 points, loop, 1 core per point',
  ]
  assert '--sweep.cores_per_point=1' in run[-1]
