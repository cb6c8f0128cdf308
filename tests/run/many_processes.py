"""Real processes that train one run: the helpers, and the full set of trials.

  python tests/run/many_processes.py same      six losses on six layouts
  python tests/run/many_processes.py ends      signals, kill -9, stuck ones;
                                               a word chooses: ends 'SIGTERM to'
  python tests/run/many_processes.py moves     from 2 x 4 to 1 x 8 and to 1 x 1
  python tests/run/many_processes.py verbs     the other commands, 2 x 2
  python tests/run/many_processes.py late      a process 45 s behind the other

Each prints a line per trial and exits with 1 if one failed.
"""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import time

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]
WORKERS = str(pathlib.Path(__file__).with_name('many_workers.py'))
EXPERIMENT = f'{ROOT}/experiments/quickstart.py:stage=dpo,runlocal'
# Rows of 64 slots, so that a step takes milliseconds.
SMALL = {
  'data.max_length': '64',
  'data.eval_pairs': '16',
  'train.batch_size': '16',
  'train.save_every': '0',
  'train.eval_every': '0',
}
_TERM = 'loss.terms.sigmoid'
CASES = {
  'full': {},
  'lora': {'adapter.rank': '4'},
  'kto': {_TERM: '0', 'loss.terms.kto': '1'},
  'aot': {_TERM: '0', 'loss.terms.aot': '1'},
  'bco': {_TERM: '0', 'loss.terms.bco': '1'},
  'beta_dpo': {'loss.beta_dpo': 'True'},
}
_STUCK = 30  # the batch, from 0, that a stuck process never makes
LAYOUTS = ((1, 1), (1, 2), (1, 4), (1, 8), (2, 4), (4, 2))  # processes, devices


def port() -> int:
  """A free port."""
  with socket.socket() as one:
    one.bind(('', 0))
    return one.getsockname()[1]


def environment(devices: int, heartbeat: int = 60) -> dict[str, str]:
  """Variables of a process with so many CPU devices."""
  flags = [
    f'--xla_force_host_platform_device_count={devices}',
    '--xla_backend_optimization_level=0',
    '--xla_llvm_disable_expensive_passes=true',
  ]
  cache = pathlib.Path(tempfile.gettempdir()) / 'dpo_jax_many_processes'
  return {
    'DPO_JAX_CACHE': str(cache),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0.2',
    'JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES': '-1',
    **os.environ,
    'JAX_PLATFORMS': 'cpu',
    'XLA_FLAGS': ' '.join(flags),
    'DPO_JAX_HEARTBEAT': str(heartbeat),
    'PYTHONPATH': str(ROOT),
  }


def start(
  folder, arguments, processes=2, devices=1, heartbeat=60, program=()
) -> list[subprocess.Popen]:
  """Starts the processes of one command; their output goes to folder/RANK."""
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  joins = [f'--coordinator_address=localhost:{port()}']
  joins += [f'--num_processes={processes}']
  program = program or ('-m', 'dpo_jax.main')
  started = []
  for rank in range(processes):
    with open(folder / str(rank), 'w') as output:
      started.append(
        subprocess.Popen(
          [sys.executable, *program, *arguments]
          + ([*joins, f'--process_id={rank}'] if processes > 1 else []),
          stdout=output,
          stderr=subprocess.STDOUT,
          env=environment(devices, heartbeat),
          cwd=ROOT,
        )
      )
  return started


def ended(started, seconds=300) -> list[int]:
  """Exit codes of processes, which are killed after so many seconds."""
  until = time.monotonic() + seconds
  try:
    return [p.wait(max(0.1, until - time.monotonic())) for p in started]
  finally:
    for process in started:
      process.kill()
      process.wait()


def flags(workdir, steps, **changes) -> list[str]:
  """The arguments of a small run; changes are {dotted key: value}."""
  keys = SMALL | {'train.num_steps': str(steps)} | changes
  return [
    f'--config={EXPERIMENT}',
    f'--workdir={workdir}',
    *(f'--config.{key}={value}' for key, value in keys.items()),
  ]


def lines(workdir) -> list[dict]:
  """The lines of metrics.jsonl that are there so far."""
  path = pathlib.Path(workdir) / 'metrics.jsonl'
  if not path.exists():
    return []
  return [json.loads(x) for x in path.read_text().splitlines() if x[-1:] == '}']


def wait_for(workdir, step, started, seconds=300, split='train') -> None:
  """Waits until a step is in metrics.jsonl."""
  until = time.monotonic() + seconds
  while time.monotonic() < until:
    if any(x['step'] >= step and x['split'] == split for x in lines(workdir)):
      return
    assert all(p.poll() is None for p in started), 'a process ended early'
    time.sleep(0.05)
  raise AssertionError(f'{workdir}: no step {step} after {seconds} s')


def numbers(workdir) -> dict:
  """{(step, split, metric): value}, without rates."""
  return {
    (line['step'], line['split'], name): value
    for line in lines(workdir)
    for name, value in line.items()
    if isinstance(value, float) and not name.endswith('_per_second')
  }


def parameters(workdir) -> dict[str, np.ndarray]:
  """The trained parameters of the last step, by name."""
  from dpo_jax import tree
  from dpo_jax.storage import checkpoints

  with checkpoints.Checkpoints(pathlib.Path(workdir) / 'checkpoints') as saved:
    items = saved.restore_latest({'params': None}, partial=True).items
  return dict(tree.flatten_with_names(items['params']))


def farthest(a, b) -> float:
  """The largest relative L2 distance of two pytrees' leaves."""
  return max(
    float(np.linalg.norm(a[k] - b[k]) / max(np.linalg.norm(a[k]), 1e-9))
    for k in a
  )


def same(steps=20) -> list[str]:
  """Losses and parameters on every layout against one device."""
  bad = []
  with tempfile.TemporaryDirectory() as top:
    for count, devices in LAYOUTS:
      folder = f'{top}/{count}x{devices}'
      program = [WORKERS, 'train_all', folder, str(steps)]
      codes = ended(start(folder, [], count, devices, program=program), 3600)
      if any(codes):
        bad.append(f'{count} x {devices}: exit {codes}')
        print((pathlib.Path(folder) / '0').read_text()[-3000:])
        continue
      reads = [
        json.loads(pathlib.Path(f'{folder}/reads_{r}').read_text())
        for r in range(count)
      ]
      for case in CASES:
        first, run = f'{top}/1x1/{case}', f'{folder}/{case}'
        a, b = numbers(first), numbers(run)
        loss = max(
          abs(a[k] - b[k]) / max(abs(a[k]), 1.0) for k in a if k[2] == 'loss'
        )
        distance = farthest(parameters(first), parameters(run))
        # Per process and batch: read, held, all.
        batches = [r[case] for r in reads]
        shares = [sum(len(b[0]) for b in one) for one in batches]
        is_share = all(b[0] == b[1] for one in batches for b in one)
        for parts in zip(*batches, strict=True):
          is_share &= {i for b in parts for i in b[0]} == {*parts[0][2]}
        line = (
          f'{case} on {count} x {devices}: loss {loss:.1e}, parameters '
          f'{distance:.1e}, records read by each {shares} '
          f'({"those of its rows" if is_share else "NOT those of its rows"}), '
          f'{len(lines(run))} lines'
        )
        print(line, flush=True)
        is_sound = (
          a.keys() == b.keys()
          and loss <= 1e-5
          and distance <= 1e-5
          and is_share
          and len(lines(run)) == steps + 2
        )
        bad += [] if is_sound else [line]
  return bad


def _ends():
  """{name: (what is done, the exit code of each process; None = any)}."""
  term, kill, stop = signal.SIGTERM, signal.SIGKILL, signal.SIGSTOP

  def twice(started, rank):
    started[rank].send_signal(term)
    time.sleep(0.3)
    started[rank].send_signal(term)

  def both(started):
    for rank in (0, 1):
      started[rank].send_signal(term)

  return {
    'SIGTERM to 0': (lambda s: s[0].send_signal(term), (143, 143)),
    'SIGTERM to 1': (lambda s: s[1].send_signal(term), (143, 143)),
    'SIGTERM to both': (both, (143, 143)),
    'SIGTERM twice to 0': (lambda s: twice(s, 0), (143, 143)),
    'SIGTERM twice to 1': (lambda s: twice(s, 1), (143, 143)),
    'kill -9 of 1': (lambda s: s[1].send_signal(kill), (3, -9)),
    'kill -9 of 0': (lambda s: s[0].send_signal(kill), (-9, None)),
    'stopped 1': (lambda s: s[1].send_signal(stop), (3, None)),
    'stopped 0': (lambda s: s[0].send_signal(stop), (None, 3)),
    # Its main thread hangs at step 30, the others live: see _main_stuck.
    'stuck 1': (lambda s: None, (3, 3)),
    'stuck 0': (lambda s: None, (3, 3)),
  }


def ends(word='', heartbeat=20, steps=60) -> list[str]:
  """Every end of one process ends all, in time, and the run goes on."""
  bad = []
  changes = {'train.save_every': '20'}
  with tempfile.TemporaryDirectory() as top:
    straight = f'{top}/straight'
    codes = ended(start(f'{top}/out', flags(straight, steps, **changes)), 1800)
    if any(codes):
      print(pathlib.Path(f'{top}/out/0').read_text()[-3000:])
      return [f'straight: exit {codes}']
    for name, (act, expected) in _ends().items():
      if word not in name:
        continue
      run, out = f'{top}/{name}', f'{top}/out {name}'
      arguments = flags(run, steps, **changes)
      program = ()
      if name.startswith('stuck'):
        program = (WORKERS, 'stuck', name[-1], str(_STUCK))
      started = start(out, arguments, heartbeat=heartbeat, program=program)
      wait_for(run, _STUCK - 1 if program else 25, started)
      act(started)
      began, codes = time.monotonic(), {}
      # A process that was stopped cannot end.
      waits = [r for r in (0, 1) if name != f'stopped {r}']
      while len(codes) < len(waits) and time.monotonic() - began < 90:
        for rank in waits:
          if rank not in codes and started[rank].poll() is not None:
            codes[rank] = started[rank].returncode
        time.sleep(0.05)
      seconds = time.monotonic() - began
      for process in started:
        process.kill()
      cut = len(lines(run))
      said = pathlib.Path(f'{out}/0').read_text().splitlines()[-1:]
      again = ended(start(f'{out} again', arguments), 1800)
      same_bits = numbers(run) == numbers(straight)
      distance = farthest(parameters(run), parameters(straight))
      line = (
        f'{name}: codes {codes} after {seconds:.1f} s at line {cut}; again '
        f'{again}, numbers {"equal" if same_bits else "DIFFER"}, parameters '
        f'{distance:.1e} apart; said {said}'
      )
      print(line, flush=True)
      is_sound = (
        all(codes.get(r) == expected[r] for r in waits if expected[r])
        and len(codes) == len(waits)
        and seconds <= heartbeat + 5
        and again == [0, 0]
        and same_bits
        and distance == 0
      )
      bad += [] if is_sound else [line]
  return bad


def moves(steps=20) -> list[str]:
  """A run that was cut on 2 x 4 goes on on 1 x 8 and on 1 x 1."""
  bad = []
  with tempfile.TemporaryDirectory() as top:
    whole = f'{top}/whole'
    ended(start(f'{top}/out', flags(whole, steps), 2, 4), 1800)
    for devices in (8, 1):
      run = f'{top}/{devices}'
      arguments = flags(run, steps)
      started = start(f'{run}_out', arguments, 2, 4)
      wait_for(run, steps // 2, started)
      started[1].send_signal(signal.SIGTERM)
      codes = ended(started, 1800)
      cut = len(lines(run))
      codes += ended(start(f'{run}_then', arguments, 1, devices), 1800)
      a, b = numbers(whole), numbers(run)
      # Tokens of a batch: the same rows give the same counts.
      tokens = [k for k in a if k[2] in ('num_tokens', 'loss')]
      gap = max(abs(a[k] - b.get(k, np.inf)) for k in tokens)
      distance = farthest(parameters(whole), parameters(run))
      line = f'2 x 4 to 1 x {devices}: exit {codes}, cut at line {cut}, '
      line += f'metrics {gap:.1e}, parameters {distance:.1e}'
      print(line, flush=True)
      is_sound = codes == [143, 143, 0] and max(gap, distance) <= 1e-5
      bad += [] if is_sound else [line]
  return bad


def late(seconds=45) -> list[str]:
  """A process that compiles for longer than gloo waits."""
  bad = []
  with tempfile.TemporaryDirectory() as top:
    for name, mesh in {'data': {}, 'fsdp': {'mesh.fsdp': '4'}}.items():
      arguments = flags(f'{top}/{name}', 2, **mesh)
      program = [WORKERS, 'late', str(seconds)]
      started = start(f'{top}/{name}_out', arguments, 2, 2, program=program)
      codes = ended(started, 1800)
      line = f'{seconds} s late, {name}: exit {codes}'
      print(line, flush=True)
      if any(codes):
        bad.append(line)
        print(pathlib.Path(f'{top}/{name}_out/1').read_text()[-1500:])
  return bad


def verbs(count=2, devices=2) -> list[str]:
  """Every command that uses devices, on sharded weights."""
  bad = []
  sharded = {'mesh.fsdp': str(devices * count), 'mesh.data': '1'}
  with tempfile.TemporaryDirectory() as top:
    for name, changes in {'one': {}, 'many': sharded}.items():
      run, size = f'{top}/{name}', (1, 1) if name == 'one' else (count, devices)
      changes = changes | {'eval.num_samples': '4', 'reference.mode': 'cache'}
      changes |= {'sample.max_new_tokens': '8', 'data.cache_dir': f'{run}_c'}
      commands = {
        'train': flags(run, 4, **changes),
        'evaluate': ['--mode=evaluate', f'--workdir={run}'],
        'sample': ['--mode=sample', f'--workdir={run}'],
        'frontier': [
          *('--mode=frontier', f'--workdir={run}', '--num_samples=8'),
          '--config.sample.max_new_tokens=8',
        ],
        'export': [
          *('--mode=export', f'--workdir={run}', f'--export_to={run}_hf'),
        ],
        'precompute_reference': [
          '--mode=precompute_reference',
          *flags(f'{run}_p', 4, **changes),
          f'--config.data.cache_dir={run}_p_c',
        ],
      }
      for verb, arguments in commands.items():
        out = f'{run}_{verb}'
        codes = ended(start(out, arguments, *size), 900)
        print(f'{verb} on {size}: exit {codes}', flush=True)
        if any(codes):
          bad.append(f'{verb} on {size}: exit {codes}')
          for rank in range(size[0]):
            print(pathlib.Path(f'{out}/{rank}').read_text()[-2500:])
    a, b = (
      {
        p.name: p.read_bytes()
        for p in pathlib.Path(f'{top}/{n}').rglob('*.js*')
      }
      for n in ('one', 'many')
    )
    print(
      'files of one and of many:', sorted(a.keys() ^ b.keys()) or 'the same'
    )
    bad += [f'files: {sorted(a.keys() ^ b.keys())}'] * (a.keys() != b.keys())
  return bad


if __name__ == '__main__':
  sys.path.insert(0, str(ROOT))
  trials = {f.__name__: f for f in (same, ends, moves, verbs, late)}
  problems = trials[sys.argv[1]](*sys.argv[2:])
  print(*(problems or ['all sound']), sep='\n')
  sys.exit(bool(problems))
