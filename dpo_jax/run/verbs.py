"""What a run directory can be asked besides training, one function a mode.

Comes in: a validated config and a workdir. Goes out: printed lines and files;
each function returns the exit code. Trains nothing.
"""

import contextlib
import json
import pathlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax

from dpo_jax import sharding
from dpo_jax.run import evaluate as evaluate_lib
from dpo_jax.run import inputs
from dpo_jax.run import job as run_setup
from dpo_jax.run import plan as planning
from dpo_jax.run import reference as reference_pass
from dpo_jax.run import sample as sample_lib
from dpo_jax.run import weights as policy_weights
from dpo_jax.run.preemption import Signals
from dpo_jax.storage import (
  checkpoints,
  hf_checkpoint,
  initial_weights,
  peft_checkpoint,
  run_dir,
)
from dpo_jax.types import Params


def plan(config, num_devices: int | None = None) -> int:
  """Prints what training would compute: steps, rows, memory, arithmetic.

  Args:
    config: validated ConfigDict.
    num_devices: devices to plan for, which compute in bfloat16 where
      precision.compute is 'auto'; None = those of this machine.
  """
  mesh = None
  if num_devices is None:
    run_setup.check_mesh(config)
  else:
    mesh = sharding.abstract_mesh(num_devices, **config.mesh)
    if config.precision.compute == 'auto':
      config = config.copy_and_resolve_references()
      config.precision.compute = 'bfloat16'
  with tempfile.TemporaryDirectory() as scratch:
    data = inputs.read(config, pathlib.Path(scratch))
    job = run_setup.build(config, data, mesh)
    print(run_setup.describe(config, data, job))
    print(planning.describe(config, job))
    parts = {'train': job.train_plan, 'eval': job.eval_plan}
    for name, part in parts.items():
      print(f'{name}: {json.dumps(part.summary())}')
  return 0


def precompute_reference(config, workdir: str) -> int:
  """Fills the score cache that reference.mode 'cache' reads."""
  with _open(config, workdir) as (directory, data, job, poll):
    reference_pass.caches(config, data, job, directory.cache_dir, poll)
  return 0


def evaluate(config, workdir: str) -> int:
  """Evaluates the workdir's newest policy; writes per_example/evaluate.npz."""
  with _open(config, workdir) as (directory, data, job, poll):
    more = {'loss_state': job.abstract.loss_state}
    if job.reference_every:
      more['reference'] = job.weights.abstract
    params, step, found = _newest_policy(config, data, job, directory, more)
    reference, (_, cache) = reference_pass.reference(
      config, data, job, directory.cache_dir, poll, found.get('reference')
    )
    metrics, examples = evaluate_lib.evaluate(
      job.eval_step,
      job.objective,
      params,
      reference,
      run_setup.batch_source(job, job.eval_plan, data.evaluation.store, cache),
      job.eval_plan.steps_per_epoch,
      job.hyper,
      poll,
      found.get('loss_state'),
    )
  print(f'step {step}: {json.dumps(metrics)}')
  directory.write_per_example(
    'evaluate', run_setup.per_example(data.evaluation, examples)
  )
  return 0


def sample(config, workdir: str) -> int:
  """Samples from the newest policy; writes samples/step_N.jsonl."""
  with _open(config, workdir) as (directory, data, job, poll):
    sampler = sample_lib.make_sampler(config, data, job)
    if config.sample.prompts:
      prompts = inputs.read_prompts(config, data.tokenizer)
    else:
      held_out = data.evaluation
      prompts = [held_out.store[i].prompt for i in held_out.indices]
    prompts = prompts[: config.sample.num_prompts or None]
    sample_lib.check_lengths(config, data.model, prompts)
    trained, step, _ = _newest_policy(config, data, job, directory)
    params = policy_weights.policy(config, data, job, trained)
    samples = sample_lib.sample(
      sampler, params, prompts, config.sample.num_samples, poll, print
    )
  path = directory.write_samples(f'step_{step}', samples)
  for one in samples[:3]:
    print(f'{one["prompt"]!r} -> {one["completion"]!r}')
  print(f'{path}: {len(samples)} samples of the policy of step {step}')
  return 0


def export(config, workdir: str, export_to: str) -> int:
  """Writes the newest policy as a Hugging Face folder."""
  with _open(config, workdir) as (directory, data, job, _):
    params, step, _ = _newest_policy(config, data, job, directory)
    if config.adapter.export == 'peft':
      peft_checkpoint.save(
        export_to, params, data.model, job.adapter, base=data.weights
      )
      print(f'{export_to}: the adapter of step {step}')
      return 0
    params = policy_weights.merged(config, data, job, params)
  tokenizer = config.tokenizer or initial_weights.tokenizer_of(data.weights)
  files = tokenizer if pathlib.Path(tokenizer).is_dir() else None
  hf_checkpoint.save(
    export_to, jax.device_get(params), data.model, tokenizer_files_from=files
  )
  print(f'{export_to}: the policy of step {step}')
  return 0


class _Opened(NamedTuple):
  """What a verb works with."""

  directory: run_dir.RunDir
  data: inputs.Inputs
  job: run_setup.Job
  poll: Callable[[], None]  # raises where a signal came


@contextlib.contextmanager
def _open(config, workdir: str) -> Iterator[_Opened]:
  """Checks the mesh, reads the inputs and builds the job, under signals."""
  directory = run_dir.RunDir(workdir)
  run_setup.check_mesh(config)
  with Signals() as signals:
    data = inputs.read(config, directory.cache_dir, print, signals.poll)
    job = run_setup.build(config, data)
    yield _Opened(directory, data, job, signals.poll)


def _newest_policy(
  config, data, job, directory, more: Mapping[str, Any] | None = None
) -> tuple[Params, int, dict[str, Any]]:
  """The newest checkpoint's parameters, or the initial model's, and step.

  Last, the items of `more` (abstract, by name) of the same checkpoint; none
  where there is no checkpoint yet.
  """
  wanted = {'params': job.abstract.params, **(more or {})}
  with checkpoints.Checkpoints(directory.checkpoints) as saved:
    found = saved.restore_latest(wanted, partial=True)
  if found is not None:
    return found.items['params'], found.step, found.items
  params = policy_weights.initial(config, data, job)
  return params, 0, {}
