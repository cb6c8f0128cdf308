"""TRL beside ours, in processes: loss curves, ratios, an older commit."""

import json
import os
import pathlib
import subprocess
import sys
import venv

import pytest

from dpo_jax.bench import crew, step

_PACKAGES = ('torch', 'trl', 'peft')


def _python(folder: pathlib.Path) -> str:
  """An interpreter with TRL: the one that is named, or of a new environment."""
  named = os.environ.get('DPO_JAX_TRL_PYTHON')
  if named:
    return named
  venv.create(folder, with_pip=True)
  python = str(folder / 'bin/python')
  subprocess.run([python, '-m', 'pip', 'install', '-q', *_PACKAGES], check=True)
  return python


@pytest.mark.slow
def test_trl_and_an_older_commit_train_as_ours(tmp_path, monkeypatch):
  if not os.environ.get('DPO_JAX_REAL_PARTS'):
    pytest.skip('set DPO_JAX_REAL_PARTS=1 to install TRL for this test')
  monkeypatch.setenv('XLA_FLAGS', '')
  path = tmp_path / 'figures.json'
  options = step.Options(
    model='tiny',
    layers=1,
    vocab=64,
    batch_size=2,
    max_length=32,
    learning_rate=1e-3,
    steps=6,
    rounds=1,
    variants=('packed+shared', 'packed+shared+cached'),
    against='trl',
    trl_python=_python(tmp_path / 'trl'),
    baseline='HEAD',
    json=str(path),
  )
  report = step.run(options)
  figures = json.loads(path.read_text())
  assert 'Loss curves of all 11 agree over 6 updates' in report
  names = {f'trl:{name}' for name in crew.TRL_VARIANTS} | {crew.LORA}
  names |= {*options.variants, *(f'HEAD:{name}' for name in options.variants)}
  assert figures['variants'].keys() == names
  wanted = 'as_shipped', 'best_shipped', 'best_patched', 'lora', 'baseline'
  for name in wanted:
    assert figures[f'ratio/{name}'] > 0 and figures[f'ratio/{name}/wall'] > 0
  losses = [v['losses'] for v in figures['variants'].values()]
  assert all(abs(curve[-1] - curve[0]) > 1e-4 for curve in losses)


def test_a_process_that_ends_is_named_and_the_others_are_measured(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(crew, '_members', _members)
  monkeypatch.setattr(crew, '_start', lambda o, f, m: _start(tmp_path, m))
  options = step.Options(rounds=1, against='trl')
  measured = crew.measure(options, tmp_path)
  assert measured.failed == {'broken': 'exit 1: ValueError: no such thing'}
  assert list(measured.rounds) == ['good']
  assert len(measured.rounds['good']) == 2 and measured.peak == 7.0
  assert json.loads((tmp_path / 'order.json').read_text()) == [1, 0]


def _members(options, path):
  return [crew.Member(n, 'ours', n) for n in ('good', 'broken')]


def _start(folder: pathlib.Path, member: crew.Member):
  broken = member.name == 'broken'
  program = folder / f'{member.name}.py'
  program.write_text(
    'import sys\n'
    f'sys.path.append({str(crew.ROOT / "dpo_jax/bench")!r})\n'
    'import protocol\n'
    'def round():\n'
    '  print("not an answer", flush=True)\n'
    f'  if {broken}: raise ValueError("no such thing")\n'
    '  return {"seconds": 1.0, "cpu_seconds": 1.0, "losses": [0.7]}\n'
    'protocol.serve({"round": round, "peak": lambda: {"peak": 7.0},\n'
    '  "export": dict,\n'
    '  "info": lambda: {"order": [1, 0], "platform": "cpu"}})\n'
  )
  return crew.protocol.Remote(
    [sys.executable, '-S', str(program)], folder / f'{member.name}.log'
  )
