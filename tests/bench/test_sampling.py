"""sampling: the benchmark runs on a tiny model; its times are not checked."""

from dpo_jax.bench import sampling


def test_the_table_has_both_ways():
  options = sampling.Options(
    preset='tiny', batch_size=2, prompt_length=8, new_tokens=32, rounds=1
  )
  rows = sampling.run(options).splitlines()[2:4]
  cells = [[cell.strip() for cell in row.split('|')] for row in rows]
  assert [cell[1] for cell in cells] == ['read again', 'cache']
  assert all(float(cell[2]) > 0 and float(cell[3]) > 0 for cell in cells)
