"""steps of runs -> reward against KL: samples, scored, with standard errors.

Comes in: run directories, or a folder of some, the steps to take, and rewards.
Goes out: per step frontier/step_N.json (means), per_example/frontier_N.npz
(values per sample) and samples/frontier_N*.jsonl (texts). Trains nothing.

Every run and step answers the same prompts: held-out records in an order that
sample.seed draws. A run's own seed adds to the noise of its samples, so that
runs of other seeds are independent, given the prompts.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from dpo_jax import sharding
from dpo_jax.data.batches import length_table
from dpo_jax.rewards import registry
from dpo_jax.run import (
  control_variates,
  datasets,
  frontier_plan,
  numerics,
  processes,
  sample,
  sampled_kl,
  weights,
)
from dpo_jax.run import session as sessions
from dpo_jax.run.frontier_plan import Task
from dpo_jax.run.job import Job
from dpo_jax.run.preemption import Diverged, Signals
from dpo_jax.storage import files, handover, readable
from dpo_jax.types import Frozen


class _Prompts(NamedTuple):
  """The prompts of the samples, one entry per sample."""

  tokens: list[np.ndarray]
  prompt_id: np.ndarray  # bytes [S], as in per_example/
  uid: np.ndarray  # bytes [S], of the record; prompt_id for prompts of a file


class _Programs(NamedTuple):
  """The jitted functions of a step of a run."""

  sampler: sample.Sampler
  estimate: Callable  # see sampled_kl.make_sampled_kl


def main(
  config,
  workdir: str,
  *,
  overrides: Sequence[tuple[str, Any]] = (),
  rewards: str = 'lexicon',
  steps: str = 'all',
  num_samples: int = 256,
  temperature: str = '',
) -> int:
  """--mode=frontier: reward and KL to the reference, of steps of runs.

  Args:
    config: not read: every run has its own.
    workdir: a run, a folder of runs, or several with semicolons between them.
    overrides: (dotted key, value) for every run.
    rewards: names with commas; the first is the metric `reward`.
    steps: numbers, 'best', 'last' or 'all', with commas between them.
    num_samples: samples per step.
    temperature: of sampling; '' = sample.temperature of the run.
  """
  del config
  scored = [registry.get(name) for name in rewards.split(',')]
  if temperature:
    overrides = [*overrides, ('sample.temperature', temperature)]
  tasks = frontier_plan.tasks(
    workdir, overrides, steps, [r.name for r in scored], num_samples
  )
  total = sum(len(task.steps) for task in tasks)
  shared = _Shared()
  progress = _Progress(total)
  # Between two runs no session listens.
  with Signals() as signals:
    for task in tasks:
      signals.poll()
      if task.steps:
        _run(task, scored, num_samples, shared, progress)
  return 0


class _Shared:
  """What the runs of one command have in common, made once."""

  def __init__(self):
    """Holds nothing yet."""
    self._programs: dict[tuple, _Programs] = {}
    self._reference: tuple[str, Frozen, list] | None = None

  def programs(self, job: Job, num_samples: int) -> _Programs:
    """The functions of a run: compiled once for all runs of one model."""
    sampler = sample.make_sampler(job)
    multiple = sharding.row_multiple(job.mesh)
    most = num_samples + -num_samples % multiple
    # Rows of padding cost as much as others.
    sampler = sampler._replace(batch_size=min(sampler.batch_size, most))
    known_V = sample.known(job.inputs.tokenizer, job.model.config.vocab_size)
    # All that the programs read besides their arguments.
    key = (
      job.inputs.model,
      numerics.compute_dtype(job.config),
      job.config.model.attention_block,
      job.mesh,
      sampler.max_new_tokens,
      None if known_V is None else known_V.tobytes(),
    )
    if key not in self._programs:
      estimate = sampled_kl.make_sampled_kl(
        job.model, sampler.max_new_tokens, known_V
      )
      self._programs[key] = _Programs(
        sampler,
        jax.jit(estimate, out_shardings=sharding.replicated(job.mesh)),
      )
    made = self._programs[key]
    return made._replace(
      sampler=sampler._replace(generate=made.sampler.generate)
    )

  def reference(self, job: Job) -> Frozen:
    """The reference of a run before any update; the latest one is kept."""
    config = job.config
    key = files.digest(
      {
        'model': config.model.to_dict(),
        'reference': config.reference.init_from,
        'precision': config.precision.reference,
        'adapter': config.adapter.to_dict(),
        'mode': config.reference.mode == 'adapter_off',
        # Random weights follow the seed.
        'seed': None if job.inputs.weights else config.seed,
        'mesh': str(job.mesh),
      }
    )
    if self._reference is None or self._reference[0] != key:
      taken = []

      def take(where, params):
        taken.append((where, job.take_weights(where, params)))

      self._reference = None  # before its successor needs the memory
      frozen = weights.frozen(
        job._replace(take_weights=take), with_reference=True
      )
      self._reference = key, frozen, taken
      return frozen
    for where, digest in self._reference[2]:
      job.take_weights(where, digest)
    return self._reference[1]


class _Progress:
  """One line per step: its numbers, and the time that is left."""

  def __init__(self, total: int):
    """Starts the clock."""
    self._began, self._done, self._total = time.monotonic(), 0, total

  def say(self, name: str, step: int, metrics: dict[str, Any]) -> None:
    """Prints the line of a step."""
    self._done += 1
    seconds = time.monotonic() - self._began
    left = seconds / self._done * (self._total - self._done)
    reward, kl, kl_mc = (
      _show(metrics[k]) for k in ('reward', 'kl_cv', 'kl_mc')
    )
    print(
      f'[{self._done}/{self._total}] {name} step {step}: reward {reward}, '
      f'KL {kl} nats (Monte Carlo {kl_mc}), '
      f'{metrics["length"]["mean"]:.1f} tokens; '
      f'{readable.clock(left)} left',
      flush=True,
    )


def _show(metric: dict[str, float | None]) -> str:
  error = metric['se']
  return f'{metric["mean"]:.2f}' + (f' ± {error:.2f}' if error else '')


def _run(task: Task, scored, num_samples, shared: _Shared, progress) -> None:
  """Measures the steps of one run."""
  with sessions.open_workdir(
    task.config, str(task.path), parts=task.parts
  ) as session:
    job, directory = session.job, session.directory
    programs = shared.programs(job, num_samples)
    prompts = _prompts(job, num_samples)
    sample.check_lengths(job, prompts.tokens)
    frozen = shared.reference(job)
    for step in task.steps:
      policy = sessions.policy(session, step=str(step))
      texts, arrays = draw(
        programs,
        frozen.policy(policy.params),
        frozen.reference(),
        prompts,
        _key(job),
        session.poll,
      )
      arrays |= _rewards(job, scored, texts)
      metrics = _metrics(arrays, prompts.prompt_id, directory.path, step)
      # Values first: where the JSON is, they are.
      directory.write_per_example(
        f'frontier_{step}',
        {'prompt_id': prompts.prompt_id, 'uid': prompts.uid, **arrays},
      )
      directory.write_samples(
        f'frontier_{step}', _lines(texts, arrays, prompts, programs.sampler)
      )
      path = frontier_plan.path(directory.path, step)
      facts = {
        'step': step,
        'reward': scored[0].name,
        'num_samples': num_samples,
        'temperature': float(task.config.sample.temperature),
        'max_new_tokens': programs.sampler.max_new_tokens,
        'num_prompts': len(set(prompts.prompt_id.tolist())),
        'metrics': metrics,
        'settings': task.settings,
      }
      if processes.is_first():
        with files.storage_errors(path):
          files.write_json(path, facts)
      progress.say(task.name, step, metrics)


def _prompts(job: Job, num_samples: int) -> _Prompts:
  """The prompts to answer: of held-out records, or of sample.prompts."""
  options = job.config.sample
  if options.prompts:
    tokens = datasets.read_prompts(job.config, job.inputs.tokenizer)
    ids = np.array([length_table.prompt_id(prompt) for prompt in tokens])
    uids = ids
  else:
    part = job.inputs.evaluation
    tokens = sample.held_out_prompts(job)
    ids = np.asarray(part.store.table.prompts)[part.indices]
    uids = np.asarray(part.store.table.uids)[part.indices]
  count = min(options.num_prompts or len(tokens), len(tokens))
  # The order of a file may mean something; a drawn one does not.
  order = np.random.default_rng(options.seed).permutation(count)
  chosen = np.resize(order, num_samples)
  return _Prompts([tokens[i] for i in chosen], ids[chosen], uids[chosen])


def _key(job: Job):
  """The key of a run's samples: of sample.seed and of the run's own seed."""
  return jax.random.fold_in(
    jax.random.key(job.config.sample.seed), job.config.seed
  )


class Text(NamedTuple):
  """A sample as token ids, and how it ended."""

  prompt: np.ndarray
  tokens: list[int]
  stopped: bool
  seed: int


def draw(
  programs: _Programs,
  params,
  reference,
  prompts: _Prompts,
  key,
  poll: Callable[[], None] = lambda: None,
) -> tuple[list[Text], dict[str, np.ndarray]]:
  """Draws one sample per entry of `prompts`, and estimates its KL.

  Args:
    programs: of the run.
    params: of the policy, as `model.decode` takes them.
    reference: parameters of the reference.
    prompts: entry i gives sample i, with seed i.
    key: PRNG key of all samples.
    poll: called between batches; raises to stop.

  Returns:
    (samples, float64 arrays [S]: kl, kl_cv, kl_mc, length in tokens).
  """
  sampler = programs.sampler
  _, sampling, stop = sampler.settings
  key = handover.put(key, stop.sharding)
  count = len(prompts.tokens)
  texts: list[Any] = [None] * count
  arrays = {name: np.zeros(count) for name in ('kl', 'kl_mc', 'length')}
  owners = np.arange(count)
  kl_NT, draws_NTF = [None] * count, [None] * count
  for rows, size in sample.batches(prompts.tokens, owners, sampler.batch_size):
    poll()
    given = [prompts.tokens[i] for i in rows]
    batch = sample.to_devices(given, rows, size, sampler)
    drawn = sampler.generate(params, *batch, key, sampling, stop)
    estimates = programs.estimate(
      params, reference, *batch[:2], drawn.tokens_RT, drawn.num_tokens, sampling
    )
    drawn, estimates = jax.device_get((drawn, estimates))
    number = len(rows)
    arrays['kl'][rows] = estimates.kl[:number]
    arrays['kl_mc'][rows] = estimates.kl_mc[:number]
    arrays['length'][rows] = drawn.num_tokens[:number]
    for place, i in enumerate(rows):
      kl_NT[i], draws_NTF[i] = (
        estimates.kl_RT[place],
        estimates.draws_RTF[place],
      )
      tokens = drawn.tokens_RT[place, : int(drawn.num_tokens[place])].tolist()
      stopped = bool(drawn.stopped[place])
      texts[i] = Text(prompts.tokens[i], tokens, stopped, i)
  arrays['kl_cv'] = control_variates.adjusted(
    np.stack(kl_NT), np.stack(draws_NTF), prompts.prompt_id
  )
  return texts, arrays


def _rewards(job: Job, scored, texts: Sequence[Text]) -> dict[str, np.ndarray]:
  """{metric: scores [S]}: the first reward is `reward`."""
  decode = job.inputs.tokenizer.decode
  answers = [
    registry.Answer(
      decode(text.prompt),
      decode(text.tokens),
      decode([*text.prompt.tolist(), *text.tokens]),
      len(text.tokens),
    )
    for text in texts
  ]
  names = ['reward', *(f'reward/{r.name}' for r in scored[1:])]
  return {name: r.score(answers) for name, r in zip(names, scored, strict=True)}


def _metrics(arrays, prompt_id, path, step) -> dict[str, dict[str, Any]]:
  """{metric: mean and standard error}; Diverged if a value is not finite."""
  for name, values in arrays.items():
    if not np.isfinite(values).all():
      raise Diverged(f'{path}: step {step}: {name} of a sample is not finite')
  return {
    name: {'mean': float(values.mean()), 'se': clustered_se(values, prompt_id)}
    for name, values in sorted(arrays.items())
  }


def clustered_se(values: np.ndarray, clusters: np.ndarray) -> float | None:
  """Returns the standard error of the mean of values that come in clusters.

  `sqrt(G / (G - 1) sum_g (sum_{i in g} (x_i - mean))^2) / n`, Liang and Zeger
  1986, eq. 2 for a mean; with one value per cluster it is the usual one.

  Args:
    values: [n].
    clusters: [n], the cluster of each, of G.

  Returns:
    None if there is one cluster only.
  """
  _, owners = np.unique(clusters, return_inverse=True)
  sums = np.bincount(owners, values - values.mean())
  if len(sums) < 2:
    return None
  return float(
    np.sqrt(len(sums) / (len(sums) - 1) * np.sum(sums**2)) / len(values)
  )


def _lines(texts, arrays, prompts: _Prompts, sampler) -> list[dict[str, Any]]:
  """The samples as rows of JSONL, with the fields of --mode=sample."""
  decode = sampler.tokenizer.decode
  return [
    {
      'prompt': decode(text.prompt),
      'completion': decode(text.tokens),
      'prompt_id': prompts.prompt_id[i].decode(),
      'seed': text.seed,
      'num_tokens': len(text.tokens),
      'stop_reason': 'stop' if text.stopped else 'length',
      **{name: float(values[i]) for name, values in arrays.items()},
      **sampler.said,
    }
    for i, text in enumerate(texts)
  ]
