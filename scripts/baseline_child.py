"""The DPO step of an older commit for scripts/benchmark.py --baseline=COMMIT.

Runs with that commit's package on the path, from functions that it has in
common with this one; modules have moved, so each is looked for by its names.
It is started by the benchmark with a folder (initial weights, pairs, order) and
the name of a variant, and answers the benchmark's questions.
"""

import importlib
import json
import pathlib
import sys
import time

sys.path.append(
  str(pathlib.Path(__file__).resolve().parents[1] / 'dpo_jax/bench')
)

import protocol  # noqa: E402


def main(folder: pathlib.Path, name: str) -> None:
  """Builds the step, then answers until the questions end."""
  answers = {}

  def info():
    step = Step(folder, name)
    answers['round'] = step.round
    return step.info

  answers['info'] = info
  protocol.serve(answers)


class Step:
  """The step with all weights, its prompts shared, compiled."""

  def __init__(self, folder: pathlib.Path, name: str):
    """Loads weights and pairs, and compiles."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from dpo_jax import losses, optim, scoring, train_step, types
    from dpo_jax.models import decoder

    _try('dpo_jax.run.host_memory', 'keep_freed')
    self._jax, self._np = jax, np
    settings = json.loads((folder / 'settings.json').read_text())
    initial = importlib.import_module('dpo_jax.storage.initial_weights')
    config = initial.read_config(settings['weights'])
    dtype = jnp.dtype(settings['dtype'])
    model = decoder.make_model(config, compute_dtype=dtype)
    abstract = jax.eval_shape(model.init, jax.random.key(0))
    place = jax.tree.map(
      lambda _: jax.sharding.SingleDeviceSharding(jax.devices()[0]), abstract
    )
    checkpoint = importlib.import_module('dpo_jax.storage.hf_checkpoint')
    weights = checkpoint.load_params(
      settings['weights'], config, shardings=place
    )
    score = scoring.make_score(model)
    self._optimizer = optim.make_optimizer('adamw', clip_norm=1.0)
    self._step = train_step.make_train_step(
      score,
      losses.make_objective(('sigmoid',)),
      self._optimizer,
      optim.make_schedule('constant', num_steps=1),
    )
    self._steps = settings['steps']
    self._init_state = _find(
      'init_state', 'dpo_jax.train_step', 'dpo_jax.train_state'
    )
    hyper = losses.default_hyper({'sigmoid': 1.0})
    rate = jnp.float32(settings['learning_rate'])
    self._hyper = hyper | {'learning_rate': rate}
    self._first = jax.device_get(weights)
    frozen = getattr(types, 'Frozen', None)
    cached = 'cached' in name
    own = None if cached else weights
    has_field = 'weights' in getattr(frozen, '_fields', ())
    self._reference = frozen(weights=own) if has_field else own
    self._plan, self._records = _plan(folder, settings)
    self._scores = {}
    if cached:
      self._score_all(score, weights)
    self.info = self._compile()

  def round(self):
    """Seconds and losses of the updates, from the initial weights."""
    jax = self._jax
    state, losses, pending = self._state(), [], None
    jax.block_until_ready(state)
    clock = protocol.Clock()
    for t in range(self._steps):
      batch = self._batch(t)
      run = self._compiled[batch.rows.tokens.shape]
      state, read = run(state, self._reference, batch, self._hyper)
      if pending is not None:
        losses.append(self._loss(pending))
      pending = read
    losses.append(self._loss(pending))
    jax.block_until_ready(state)
    memory = {'peak_rss_mb': protocol.peak_rss_mb(), 'device_peak_mb': 0.0}
    return clock.read() | {'losses': losses} | memory

  def _state(self):
    own = self._jax.tree.map(self._np.array, self._first)
    own = self._jax.device_put(own)
    return self._init_state(own, self._optimizer, 0)

  def _loss(self, read):
    loss = self._jax.device_get(read)['loss']
    # metrics.Mean: a sum and a count.
    return float(loss[0] / loss[1]) if isinstance(loss, tuple) else float(loss)

  def _batch(self, t):
    batch = self._plan.batch(t, self._records)
    if self._scores:
      batch = batch._replace(reference=self._scores[t])
    return self._jax.device_put(batch)

  def _score_all(self, score, weights):
    jitted = self._jax.jit(score, static_argnums=2)
    for t in range(self._steps):
      batch = self._plan.batch(t, self._records)
      rows = self._jax.tree.map(lambda x: x[0], batch.rows)
      scores = jitted(weights, rows, len(batch.labels))
      self._scores[t] = self._jax.device_get(scores)

  def _compile(self):
    jax = self._jax
    step = jax.jit(self._step, donate_argnums=0)
    batches = map(self._batch, range(self._steps))
    batches = {batch.rows.tokens.shape: batch for batch in batches}
    began, state = time.perf_counter(), self._state()
    self._compiled = {
      shape: step.lower(state, self._reference, batch, self._hyper).compile()
      for shape, batch in batches.items()
    }
    memory = [c.memory_analysis() for c in self._compiled.values()]
    return {
      'framework': f'jax {jax.__version__}',
      'compile_seconds': time.perf_counter() - began,
      'temporary_mb': max(m.temp_size_in_bytes for m in memory) / 1e6,
    }


def _plan(folder: pathlib.Path, settings):
  """The plan of the benchmark's own order, and the records."""
  import numpy as np

  from dpo_jax.types import Comparison, EncodedRecord

  with np.load(folder / 'pairs.npz') as file:
    tokens, lengths = file['tokens'], file['lengths']
  parts = np.split(tokens, np.cumsum(lengths.ravel())[:-1])
  records = [
    EncodedRecord(parts[i], (parts[i + 1], parts[i + 2]), (Comparison(0, 1),))
    for i in range(0, len(parts), 3)
  ]
  names = 'data.batches.length_table', 'data.length_table'
  table = _find('make_table', *(f'dpo_jax.{n}' for n in names))(records)
  names = 'data.batches.pipeline', 'data.pipeline'
  plan = _find('make_plan', *(f'dpo_jax.{n}' for n in names))(
    table,
    seed=0,
    batch_size=settings['batch_size'],
    row_length=settings['row_length'] or settings['max_length'],
  )
  order = json.loads((folder / 'order.json').read_text())
  own = [int(i) for t in range(settings['steps']) for i in plan.records(t)]
  if own != order:
    raise ValueError('that commit orders the pairs otherwise')
  return plan, records


def _find(name: str, *modules: str):
  """A function, from the first of the modules that has it."""
  for module in modules:
    try:
      return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
      continue
  raise ImportError(f'that commit has no {name}: {", ".join(modules)}')


def _try(module: str, name: str) -> None:
  """Calls a function that an older commit may lack."""
  try:
    _find(name, module)()
  except ImportError:
    pass


if __name__ == '__main__':
  main(pathlib.Path(sys.argv[1]), sys.argv[2])
