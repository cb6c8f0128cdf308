"""prompts -> samples: the sampling loop.

Comes in: a Job, parameters, encoded prompts. Goes out: one dict per sample,
ready for JSONL. Judges no sample.

The padded length of a prompt depends on its own length only, and every batch
has sample.batch_size rows. So the bits of a sample depend on its prompt, its
seed and the settings, not on the other prompts of its batch.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections.config_dict import ConfigDict

from dpo_jax import config as config_lib
from dpo_jax import errors, sharding, types
from dpo_jax.data.batches import length_table
from dpo_jax.models import generate
from dpo_jax.run import datasets, positions, weights
from dpo_jax.run import session as sessions
from dpo_jax.run.job import Job
from dpo_jax.storage import files, handover, state_items
from dpo_jax.types import ROW_AXES

# Values with which a filter does nothing: they stay out of a file's name.
_OFF = {'top_k': 0, 'top_p': 1.0, 'min_p': 0.0}
# Prompts are padded to this many tokens or to the next power of two above:
# one compile per size.
_SHORTEST = 32


class Sampler(NamedTuple):
  """Everything that sampling needs except parameters and prompts."""

  generate: Callable  # jitted; one compile per padded length
  score: Callable  # jitted, as scoring.make_score makes it
  max_new_tokens: int
  said: dict[str, Any]  # the choices that go into every line
  tokenizer: Any
  batch_size: int
  rows: NamedSharding  # of arrays whose first axis is the rows
  settings: tuple[Any, ...]  # key, Sampling, stop tokens, on the devices


def main(config: ConfigDict, workdir: str, step: str = '') -> int:
  """--mode=sample: samples a policy of the run, to samples/step_N_*.jsonl."""
  parts = config_lib.parts_read(config, 'sample')
  with sessions.open_workdir(config, workdir, parts=parts) as session:
    job, options = session.job, config.sample
    sampler = make_sampler(job)
    if options.prompts:
      prompts = datasets.read_prompts(config, job.inputs.tokenizer)
    else:
      prompts = held_out_prompts(job)
    prompts = prompts[: options.num_prompts or None]
    check_lengths(job, prompts)
    has_moved = job.reference_every and config.reference.mode != 'none'
    more = {state_items.REFERENCE: job.weights.abstract} if has_moved else {}
    policy = sessions.policy(session, more, step)
    frozen = weights.frozen(
      job,
      with_reference=config.reference.mode != 'none',
      moved=policy.items.get(state_items.REFERENCE),
    )
    samples = sample(
      sampler,
      frozen.policy(policy.params),
      prompts,
      options.num_samples,
      session.poll,
      print,
      reference=None if config.reference.mode == 'none' else frozen.reference(),
    )
  name = file_name(f'step_{policy.step}', sampler, samples)
  path = session.directory.write_samples(name, samples)
  for row in samples[:3]:
    print(f'{row["prompt"]!r} -> {row["completion"]!r}')
  print(f'{path}: {len(samples)} samples of the policy of step {policy.step}')
  return 0


def held_out_prompts(job: Job, count: int | None = None) -> list[np.ndarray]:
  """Returns token ids of the first `count` held-out prompts; None = all."""
  part = job.inputs.evaluation
  return [part.store[i].prompt for i in part.indices[:count]]


def file_name(start: str, sampler: Sampler, samples) -> str:
  """The name of a file of samples: its beginning, the choices, a digest.

  The digest is of the prompts and of all choices: equal names, equal samples.
  """
  said = sampler.said
  words = [start, f't{said["temperature"]:g}']
  for key, letter in (('top_k', 'k'), ('top_p', 'p'), ('min_p', 'm')):
    words += [f'{letter}{said[key]:g}'] if said[key] != _OFF[key] else []
  drawn = [[row['prompt_id'], row['seed']] for row in samples]
  digest = files.digest([said, drawn])[:8]
  return '_'.join([*words, f'seed{said["sample_seed"]}', digest])


def make_sampler(job: Job) -> Sampler:
  """Makes a Sampler from config.sample; compiles nothing yet.

  Raises:
    InputError: a stop text is not a single token.
  """
  options, tokenizer = job.config.sample, job.inputs.tokenizer
  made = generate.make_generate(
    job.model,
    max_new_tokens=options.max_new_tokens,
    known_V=known(tokenizer, job.model.config.vocab_size),
    mesh=job.mesh,
  )
  # Numbers are traced, not static: a sweep over temperatures compiles once.
  replicated = sharding.replicated(job.mesh)
  sampling = generate.Sampling(
    temperature=np.float32(options.temperature),
    top_k=np.int32(options.top_k),
    top_p=np.float32(options.top_p),
    min_p=np.float32(options.min_p),
  )
  stop = np.array(stop_ids(tokenizer, options.stop), np.int32)
  key = jax.random.key(options.seed)
  # The batch size is rounded up: every device gets equally many rows.
  multiple = sharding.row_multiple(job.mesh)
  return Sampler(
    generate=jax.jit(made, out_shardings=replicated),
    score=job.score,
    max_new_tokens=options.max_new_tokens,
    said={
      **{k: options[k] for k in ('temperature', 'top_k', 'top_p', 'min_p')},
      'sample_seed': options.seed,
      'max_new_tokens': options.max_new_tokens,
      'stop_ids': [i for i in stop.tolist() if i >= 0],
    },
    tokenizer=tokenizer,
    batch_size=options.batch_size + -options.batch_size % multiple,
    rows=NamedSharding(job.mesh, PartitionSpec(ROW_AXES)),
    settings=handover.put((key, sampling, stop), replicated),
  )


def known(tokenizer, size: int) -> np.ndarray | None:
  """Returns which rows of the model's head are tokens, bool; None = all."""
  known_V = np.zeros(size, bool)
  known_V[[i for i in tokenizer.known_ids if i < size]] = True
  return None if known_V.all() else known_V


def stop_ids(tokenizer, stop: str | tuple[str, ...]) -> list[int]:
  """Returns the stop tokens: the tokenizer's and those of `stop`.

  [-1] if there are none, so that the array is not empty: no token has id -1.
  """
  names = stop.split(',') if isinstance(stop, str) else stop
  stops = set(tokenizer.stop_ids)
  for name in filter(None, names):
    ids = tokenizer.encode(name, allow_special=True)
    if len(ids) != 1:
      raise errors.refuse(
        'config.sample.stop',
        f'{name!r} is {len(ids)} tokens of {tokenizer.name}',
        'give texts that are one token each',
      )
    stops |= set(ids)
  return sorted(stops) or [-1]


def check_lengths(job: Job, prompts: Sequence[np.ndarray]) -> None:
  """Refuses a prompt whose continuation has no position in the model."""
  lengths = [len(prompt) for prompt in prompts]
  positions.check_samples(job.inputs.model, lengths, job.config)


def sample(
  sampler: Sampler,
  params,
  prompts: Sequence[np.ndarray],
  num_samples: int = 1,
  poll: Callable[[], None] = lambda: None,
  log: Callable[[str], None] = lambda line: None,
  reference=None,
) -> list[dict[str, Any]]:
  """Draws samples from a model.

  Args:
    sampler: from make_sampler.
    params: the parameters, as `model.decode` takes them.
    prompts: token ids, at least one per prompt.
    num_samples: samples per prompt.
    poll: called between batches; raises to stop.
    log: takes a line of progress.
    reference: what `model.hidden` takes, of the reference; None = no reference
      is at hand, and `reference_logp` is None.

  Returns:
    One dict per sample, in the order of the prompts. Sample n of prompt i has
    the seed i * num_samples + n.
  """
  owners = np.repeat(np.arange(len(prompts)), num_samples)
  samples: dict[int, dict[str, Any]] = {}
  for rows, size in batches(prompts, owners, sampler.batch_size):
    poll()
    batch = to_devices([prompts[owners[i]] for i in rows], rows, size, sampler)
    drawn = jax.device_get(sampler.generate(params, *batch, *sampler.settings))
    given = [prompts[owners[i]] for i in rows]
    scores = _reference_logps(sampler, reference, given, drawn, size)
    for place, i in enumerate(rows):
      one = jax.tree.map(lambda x, place=place: x[place], drawn)
      samples[i] = {
        **_describe(sampler.tokenizer, given[place], one, int(owners[i]), i),
        'reference_logp': scores[place],
        **sampler.said,
      }
    log(f'{len(samples)} of {len(owners)} samples')
  return [samples[i] for i in range(len(owners))]


def batches(prompts, owners, batch_size) -> Iterator[tuple[list[int], int]]:
  """Yields (numbers of samples, their padded length), grouped by length.

  Args:
    prompts: token ids.
    owners: the index of each sample's prompt.
    batch_size: samples per batch at most.
  """
  by_size: dict[int, list[int]] = {}
  for i, owner in enumerate(owners):
    length = len(prompts[owner])
    # The next power of two.
    size = max(_SHORTEST, 1 << (length - 1).bit_length())
    by_size.setdefault(size, []).append(i)
  for size, rows in sorted(by_size.items()):
    for start in range(0, len(rows), batch_size):
      yield rows[start : start + batch_size], size


def to_devices(prompts, seeds, size, sampler):
  """Returns prompts, lengths and seeds on the devices, with empty rows."""
  num_rows = sampler.batch_size
  tokens = np.zeros((num_rows, size), np.int32)
  lengths, row_seeds = np.zeros(num_rows, np.int32), np.zeros(num_rows)
  for row, (prompt, seed) in enumerate(zip(prompts, seeds)):
    tokens[row, : len(prompt)] = prompt
    lengths[row], row_seeds[row] = len(prompt), seed
  host = tokens, lengths, row_seeds.astype(np.uint32)
  return handover.put(host, sampler.rows)


def _reference_logps(
  sampler: Sampler, reference, prompts, drawn, size: int
) -> list[float | None]:
  """The reference's log-probability of each sample, temperature 1, nats."""
  if reference is None:
    return [None] * len(prompts)
  num_rows, width = sampler.batch_size, size + sampler.max_new_tokens
  fields = np.zeros((5, num_rows, width), np.int32)
  tokens, places, prompt_id, targets, owners = fields
  owners -= 1
  for row, prompt in enumerate(prompts):
    start, stop = len(prompt), len(prompt) + int(drawn.num_tokens[row])
    answer = drawn.tokens_RT[row, : stop - start]
    tokens[row, :start], tokens[row, start:stop] = prompt, answer
    places[row, :stop], prompt_id[row, :stop] = np.arange(stop), 1
    # A token is predicted one place before it.
    targets[row, start - 1 : stop - 1] = answer
    owners[row, start - 1 : stop - 1] = row
  rows = types.Rows(
    tokens, places, prompt_id, np.zeros_like(tokens), targets, owners
  )
  rows = handover.put(rows, sampler.rows)
  scores = jax.device_get(sampler.score(reference, rows, num_rows).logps)
  return [float(x) for x in scores[: len(prompts)]]


def _describe(tokenizer, prompt, one, number: int, seed: int) -> dict[str, Any]:
  """A sample as a row of JSONL; logp and model_logp are sums, in nats."""
  # Arrays have max_new_tokens entries: those after the stop are no part of it.
  count = int(one.num_tokens)
  tokens = one.tokens_RT[:count].tolist()
  return {
    'prompt': tokenizer.decode(prompt),
    'completion': tokenizer.decode(tokens),
    'prompt_id': length_table.prompt_id(prompt).decode(),
    'prompt_token_ids': [int(i) for i in prompt],
    'prompt_number': number,
    'seed': seed,
    'num_tokens': count,
    'stop_reason': 'stop' if one.stopped else 'length',
    'logp': float(one.logps_RT.sum(dtype=np.float64)),
    'model_logp': float(one.model_logps_RT.sum(dtype=np.float64)),
    'token_ids': tokens,
    'logps': [float(x) for x in one.logps_RT[:count]],
  }
