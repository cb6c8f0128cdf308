"""Studies: the points of a grid, measures by hand, rows of several axes."""

import numpy as np

from dpo_jax.exact import cases, choices, study

SETTINGS = study.Settings(
  case='bradley_terry',
  losses=choices.read('sigmoid,ipo'),
  betas=(1.0, 0.1),
  sizes=(np.inf, 50.0),
  noises=(0.0, 0.2),
  samplings=('uniform', 'reference'),
  steps=(200, 20),
  num_seeds=2,
)


def test_points_vary_one_axis_at_a_time():
  base = study.Point(1.0, np.inf, 0.0, 'uniform', 200)
  assert study.points(SETTINGS) == [
    base,
    base._replace(beta=0.1),
    base._replace(size=50.0),
    base._replace(noise=0.2),
    base._replace(sampling='reference'),
    base._replace(steps=20),
  ]


def test_measures_by_hand():
  case = cases.Case(
    np.array([[0.5, 0.5]]), np.array([[np.log(3), 0.0]]), np.zeros((1, 2, 2))
  )
  # pi* at beta 1 is (3/4, 1/4); pi = (1/4, 3/4).
  numbers = study.measure(case, 1.0, np.array([[0.25, 0.75]]))
  kl = 0.5 * np.log(3)  # 1/4 log 1/3 + 3/4 log 3
  expected = {
    'tv': 0.5,
    'kl': kl,
    'regret': kl,
    'reward': np.log(3) / 4,
    'reward_gap': np.log(3) / 2,
    'drift': 0.25 * np.log(0.5) + 0.75 * np.log(1.5),
    'best': 0.25,
  }
  assert numbers.keys() == expected.keys()
  for key, value in expected.items():
    np.testing.assert_allclose(numbers[key], value, err_msg=key)


def test_the_regret_is_what_the_regularised_reward_lacks():
  case, beta = cases.bradley_terry(0), 0.3
  policy = cases.softmax(np.random.default_rng(0).normal(size=(4, 5)))
  star = study.measure(case, beta, cases.regularised_optimum(case, beta))
  ours = study.measure(case, beta, policy)
  lacks = (star['reward'] - beta * star['drift']) - (
    ours['reward'] - beta * ours['drift']
  )
  np.testing.assert_allclose(ours['regret'], lacks, rtol=1e-12)
  assert abs(star['tv']) < 1e-15 and abs(star['regret']) < 1e-14


def test_a_certain_policy_has_finite_measures():
  case = cases.three_actions(0)
  numbers = study.measure(case, 1.0, np.array([[1.0, 0.0, 0.0]]))
  assert all(np.isfinite(value) for value in numbers.values())
  np.testing.assert_allclose(numbers['drift'], np.log(3))


def test_rows():
  lines = []
  rows = study.run(SETTINGS, lines.append)
  assert lines == ['DPO', 'IPO'] and len(rows) == 2 * 6 * 2
  at = {(row.loss, study.Point(*row[1:6]), row.seed): row for row in rows}
  assert len(at) == len(rows)
  base = study.points(SETTINGS)[0]
  for seed in range(2):
    dpo = at['sigmoid', base, seed]
    assert dpo.tv < 1e-3 < at['ipo', base, seed].tv
    # Less data, wrong labels and fewer updates each lead away from pi*.
    for other in ({'size': 50.0}, {'noise': 0.2}, {'steps': 20}):
      assert at['sigmoid', base._replace(**other), seed].tv > 10 * dpo.tv
    # The sampling moves IPO's optimum and not DPO's, and IPO reaches it.
    elsewhere = base._replace(sampling='reference')
    assert at['sigmoid', elsewhere, seed].tv < 1e-3
    ipo = at['ipo', elsewhere, seed]
    assert abs(ipo.tv - at['ipo', base, seed].tv) > 1e-4 and ipo.own < 1e-3
  again = study.run(SETTINGS._replace(losses=choices.read('ipo')))
  assert again == rows[12:]
