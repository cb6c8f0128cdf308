"""step: every variant on a tiny model; times are not checked, figures are."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from dpo_jax.bench import step, workload
from dpo_jax.types import InputError

ROOT = pathlib.Path(__file__).resolve().parents[2]
TINY = step.Options(
  model='tiny',
  layers=1,
  width=16,
  heads=2,
  kv_heads=1,
  head_size=8,
  mlp=24,
  vocab=40,
  batch_size=2,
  max_length=24,
  learning_rate=0.01,
  steps=2,
  rounds=2,
  isolated=False,
  overrides=('data.max_shapes=1',),
  peak_tflops=1.0,
)


@pytest.fixture(scope='module')
def measured(tmp_path_factory):
  """The report and the JSON of one run on a file of pairs."""
  folder = tmp_path_factory.mktemp('bench')
  rows = [
    {'prompt': f'Q{i}: why?', 'chosen': f' as {i}' * (i + 1), 'rejected': ' no'}
    for i in range(8)
  ]
  path = folder / 'pairs.jsonl'
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  variants = ('padded+full', 'packed+shared', 'packed+shared+cached', 'forward')
  options = TINY._replace(
    data=str(path),
    variants=variants,
    json=str(folder / 'deep/figures.json'),
  )
  text = step.run(options)
  return text, json.loads(pathlib.Path(options.json).read_text()), variants


def test_every_variant_is_measured_and_computes_the_same(measured):
  text, figures, variants = measured
  assert tuple(figures['variants']) == variants and not figures['failed']
  assert figures['curves']['agree'] and f'all {len(variants) - 1} agree' in text
  curves = {n: v['losses'] for n, v in figures['variants'].items()}
  assert curves.pop('forward') == []
  for curve in curves.values():
    assert len(curve) == 2 and curve[0] == pytest.approx(np.log(2), abs=1e-5)
    # Two updates at this rate move the loss: equal curves say something.
    assert abs(curve[1] - curve[0]) > 1e-4
  first, *others = curves.values()
  np.testing.assert_allclose(others, [first] * len(others), atol=1e-5)


def test_the_json_has_every_figure_and_ratio(measured):
  _, figures, variants = measured
  wanted = {'machine', 'versions', 'commit', 'command', 'options', 'model'}
  assert wanted <= figures.keys()
  for own in figures['variants'].values():
    assert len(own['seconds']) == len(own['cpu_seconds']) == 2
    rate = 4 / np.median(own['cpu_seconds'])
    assert own['pairs_per_cpu_second'] == pytest.approx(rate)
    assert own['peak_rss_mb'] > 100 and own['temporary_mb'] > 0
  for name in variants[1:]:
    ours, first = (figures['variants'][n] for n in (name, variants[0]))
    for suffix, clock in (('', 'cpu_seconds'), ('/wall', 'seconds')):
      each = np.array(first[clock]) / np.array(ours[clock])
      assert figures[f'ratio/{name}{suffix}'] == pytest.approx(np.median(each))


def test_padded_rows_are_as_long_as_the_longest_of_the_batch(measured):
  _, figures, _ = measured
  options = step.Options(**figures['options'])
  records = workload.records(options, workload.shape(options))
  padded = figures['variants']['padded+full']
  longest = [
    # The last token of a text predicts nothing.
    max(len(records[i].prompt) + len(c) - 1 for i in pair for c in
        records[i].completions)
    for pair in np.reshape(padded['order'], (2, 2))
  ]  # fmt: skip
  assert padded['row_lengths'] == longest and padded['row_counts'] == [4, 4]
  assert longest[0] != longest[1] and padded['compiled_programs'] == 2


@pytest.mark.parametrize(
  'line, problem',
  [
    ('{"prompt": "a", "chosen": "b"', 'not JSON'),
    ('["a"]', 'a JSON list, not an object'),
    ('{"prompt": "a", "chosen": "b"}', "no text 'rejected'"),
    ('{"prompt": "a", "chosen": "b", "rejected": 3}', "no text 'rejected'"),
  ],
)
def test_a_bad_line_of_the_file_is_named(tmp_path, line, problem):
  path = tmp_path / 'pairs.jsonl'
  path.write_text(f'{{"prompt": "a", "chosen": "b", "rejected": "c"}}\n{line}')
  with pytest.raises(InputError) as caught:
    step.run(TINY._replace(data=str(path)))
  assert str(caught.value).startswith(f'{path}:2: {problem}')


@pytest.mark.parametrize(
  'flags, problem',
  [
    ({'data': 'no.jsonl'}, '--data: .*cannot be read'),
    ({'overrides': ('model.remat=some',)}, "config.model.remat: 'some'"),
    ({'overrides': ('model.x=1',)}, 'config.model.x'),
    ({'overrides': ('train.batch_size=1',)}, 'set by a flag'),
    ({'head_chunk': '-1'}, 'config.precision.head_chunk: -1'),
    ({'against': 'trl'}, '--trl_python: is missing'),
    ({'against': 'tlr', 'trl_python': 'p'}, "--against: no 'tlr'"),
    ({'grow': ('depth',)}, "--grow: no 'depth'"),
    ({'baseline': 'no-such-commit'}, '--baseline: .*no-such-commit'),
    ({'cores': 4096}, '--cores: 4096 of'),
    ({'tokenizer': 'byte', 'data': 'FILE'}, 'has 259 tokens, the model 40'),
  ],
)
def test_bad_flags_are_refused(tmp_path, flags, problem):
  path = tmp_path / 'pairs.jsonl'
  path.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
  if flags.get('data') == 'FILE':
    flags = flags | {'data': str(path)}
  with pytest.raises(InputError, match=problem):
    step.run(TINY._replace(**flags))


def test_the_script_reads_names_switches_and_config_keys():
  script = [sys.executable, str(ROOT / 'scripts/benchmark.py')]
  child = subprocess.run(
    [*script, '--variants=fast', '--passes', '--config.model.remat=full'],
    capture_output=True,
    text=True,
  )
  assert child.returncode == 2 and "no 'fast'" in child.stderr
