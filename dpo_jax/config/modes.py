"""The modes of the command line: their functions, flags and needs.

Comes in: nothing. Goes out: MODES, and the words of the flags that belong to
single modes. Imports no module that it names.
"""

from typing import Any, NamedTuple


class Mode(NamedTuple):
  """One --mode: its function, its flags, and what it cannot work with."""

  # Has `main(config, workdir, **flags) -> exit code`. A name, because importing
  # jax takes seconds: a refusal must not wait for it.
  module: str
  what: str  # for --help
  flags: tuple[str, ...] = ()  # besides --config and --workdir
  needs: tuple[str, ...] = ('config', 'workdir')  # flags that must be given
  # (config key, value with which the mode has nothing to do, value to use)
  excludes: tuple[tuple[str, Any, str], ...] = ()
  # --workdir alone opens the run there; flags may change what training did not
  # depend on
  reads_run: bool = False
  # False: its function takes no config; that of a sweep loads one per point
  configured: bool = True
  # Whether several processes work on it together (run/processes.py)
  joins: bool = True


MODES = {
  'train': Mode('dpo_jax.train', 'SFT or preference training', flags=('fork',)),
  'evaluate': Mode(
    'dpo_jax.run.evaluate',
    'scores the held-out comparisons once more',
    flags=('step', 'diagnose'),
    reads_run=True,
  ),
  'plan': Mode(
    'dpo_jax.run.plan',
    'what training would do: shapes, steps, memory',
    flags=('plan_devices', 'compile'),
    needs=('config',),
    reads_run=True,
    joins=False,
  ),
  'show': Mode(
    'dpo_jax.run.show',
    'encoded records as text, trained tokens marked; the ledger explained',
    flags=('record', 'num_records'),
    needs=('config',),
    reads_run=True,
    joins=False,
  ),
  'sample': Mode(
    'dpo_jax.run.sample',
    'texts of the policy, to WORKDIR/samples',
    flags=('step',),
    reads_run=True,
  ),
  'frontier': Mode(
    'dpo_jax.run.frontier',
    'reward and KL to the reference of steps of runs, from samples',
    flags=('rewards', 'steps', 'num_samples', 'temperature'),
    needs=('workdir',),
    configured=False,
  ),
  'precompute_reference': Mode(
    'dpo_jax.run.reference',
    "fills the cache for reference.mode='cache'",
    excludes=(('reference.mode', 'none', 'cache'),),
    reads_run=True,
  ),
  'replay': Mode(
    'dpo_jax.run.replay',
    'takes the step that ended a run again, and compares its bits',
    flags=('step',),
    needs=('workdir',),
    reads_run=True,
  ),
  'export': Mode(
    'dpo_jax.run.export',
    'writes the policy as a Hugging Face or PEFT folder',
    flags=('export_to', 'step'),
    needs=('config', 'workdir', 'export_to'),
    reads_run=True,
  ),
  'cache': Mode(
    'dpo_jax.run.caches',
    'lists what runs share on disk, or clears it',
    flags=('clear',),
    needs=(),
    configured=False,
    joins=False,
  ),
  'sweep': Mode(
    'dpo_jax.sweeps.run',
    'trains every point of a sweep, each in its own run directory',
    flags=('dry_run', 'retry', 'status'),
    needs=(),
    configured=False,
    joins=False,
  ),
}
# Flags of single modes: {name: text for --help}.
MODE_FLAGS = {
  'export_to': 'DIR, the folder to write',
  'fork': 'RUN[@STEP], a run whose state and config a new run starts from',
  'plan_devices': 'N, v5e-16, v5p-128, h100x8: in place of these devices',
  'compile': 'asks XLA for memory and collectives; a TPU slice needs libtpu',
  'rewards': 'NAME,NAME: lexicon (the default), length, classifier:FOLDER, ...',
  'steps': 'N,N, best, last or all (the default: the start and what is saved)',
  'num_samples': 'N, samples per step; 256 by default',
  'temperature': 'of the samples; that of sample.temperature by default',
  'num_records': 'N, records to print; 3 by default',
  'record': 'ID, a uid or prompt_id of per_example/*.npz, or its beginning',
  'step': 'N or best (of train.keep_best); the newest checkpoint by default',
  'clear': 'KIND,KIND or all: removes tokens, reference, compiled',
  'diagnose': 'says what stands out in the run, and which knob to try',
  'dry_run': 'prints the points, what shares a compile, and the cost',
  'retry': 'tries points again that failed',
  'status': 'prints where every point stands',
}
# Flags of the processes that work on one command together.
PROCESS_FLAGS = {
  'distributed': 'auto (Slurm, GKE, Cloud TPU are found), on or off',
  'coordinator_address': 'HOST:PORT of the first process, if none is found',
  'num_processes': 'N, with --coordinator_address',
  'process_id': 'I, from 0, with --coordinator_address',
}
# Flags without a value.
SWITCHES = {'compile', 'diagnose', 'dry_run', 'retry', 'status'}
# Flags that are whole numbers.
NUMBERS = {'num_records', 'num_samples'}
