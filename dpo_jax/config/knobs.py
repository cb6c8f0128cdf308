"""Every knob once, in data-flow order: default, rule, unit, reader.

Comes in: nothing; choices that another module owns are read from it. Goes out:
base(), the config that experiments start from, and the Knob of every key.
Imports no jax.

Each knob is one line `section.key = rule(default, ...)  # unit; reader`, the
comment above it if the line is full. The reader is the module that uses the
value. help.py prints these comments.
"""

import functools
import pathlib
import types
from collections.abc import Mapping

from ml_collections import config_dict
from ml_collections.config_dict import ConfigDict

import dpo_jax

# The words of the lines below: names instead of a module, for once.
from dpo_jax.config.rules import (
  Knob,
  above,
  at_least,
  choice,
  day,
  flag,
  folder,
  json_text,
  name,
  names,
  num_parts,
  number,
  numbers,
  required,
  seed,
  share,
  steps,
  text,
  unknown_key,
  whole,
  whole_or_auto,
  within,
)
from dpo_jax.data.batches import rows
from dpo_jax.data.sources import records
from dpo_jax.data.text import chat, truncation
from dpo_jax.losses import catalogue
from dpo_jax.models import adapter_spec, decoder_config, presets
from dpo_jax.storage import trackers
from dpo_jax.types import MESH_AXES

_OPTIM = pathlib.Path(dpo_jax.__file__).parent / 'optim.py'

# Sizes that no machine has room for are refused before anything is read.
_LONGEST = 2**20  # tokens
_BATCH = 2**20  # prompts, samples
_RANK = 2**16
_VOCABULARY = 2**24  # tokens

# The weight of a loss in loss.terms; its key is the name of the loss.
TERM = at_least(0.0, 0, zero='without this term')


class Section(types.SimpleNamespace):
  """Knobs and sections by name, in the order in which they were set."""

  def add(self, key: str, knob: Knob) -> None:
    """Sets a knob that another file declares, unless it has a line here."""
    if key not in vars(self):
      setattr(self, key, knob)


@functools.cache
def root() -> Section:
  """All knobs."""
  run = Section()
  run.stage = choice('sft', 'dpo', default='dpo')  # train
  run.seed = seed(0)  # data order, initial weights; pipeline, train
  run.data = _data()
  # '' = the tokenizer of model.init_from; tokenizer
  run.tokenizer = text("a folder, a tokenizer.json or 'byte'")
  run.model = _model()
  run.adapter = _adapter()
  run.reference = _reference()
  run.loss = _loss()
  run.optim = _optim()
  run.train = _train()
  run.eval = _eval()
  run.sample = _sample()
  run.log = _log()
  run.precision = _precision()
  run.mesh = _mesh()
  return run


@functools.cache
def flat() -> Mapping[str, Knob]:
  """{dotted key: Knob} of all knobs; loss.terms has none of its own."""
  return dict(_leaves(root(), ''))


def find(key: str) -> Knob:
  """The Knob of a dotted key of a config; InputError if there is none."""
  if key.startswith('loss.terms.'):
    return TERM
  if key not in flat():
    raise unknown_key(key, flat())
  return flat()[key]


def base() -> ConfigDict:
  """Every knob at its default; locked, except loss.terms."""
  config = _config(root())
  config.lock()
  config.loss.terms.unlock()
  return config


@functools.cache
def optimizers() -> Mapping[str, Mapping[str, float | str]]:
  """{optimizer: {keyword: default}} of optim.py, read without importing it."""
  return _read_optim('optimizer')


@functools.cache
def schedules() -> Mapping[str, Mapping[str, float]]:
  """{schedule: {keyword: default}} of optim.py, read without importing it."""
  return _read_optim('schedule')


def _data() -> Section:
  data = Section()
  # no default: an experiment names its data; source
  data.train = required(names('a file or a source name, or several as a,b'))
  # '' = 1 each; mixture
  data.proportions = numbers('numbers >= 0 and <= 10000 as 1,0.5')
  # 'split' = comparisons held out of data.train; datasets
  data.eval = name('split', "a file, a source name or 'split'")
  data.eval_pairs = whole(256, least=1)  # held out if eval is 'split'; split
  data.manual_dir = folder()  # files of public sets, fetched by hand; source
  # encoded data, reference scores; '' = the user's cache folder; caches
  data.cache_dir = folder()
  # that encode at once; encoding
  data.encode_processes = whole(0, zero='one per core')
  data.row_format = choice('auto', *records.FORMATS)  # records
  data.columns = text('NEW=OLD,-OTHER')  # renames, or leaves out; source
  data.use_token_ids = flag(False)  # take *_ids as they are, if given; source
  # '' = the tokenizer's; datasets
  data.chat_template = text('a Jinja file or a name')
  data.use_chat_template = choice('auto', 'always')  # auto = chats only; encode
  data.template_date = day('2024-07-26')  # what strftime_now writes; sandbox
  data.template_args = json_text('{"enable_thinking": false}')  # chat
  data.train_on = choice(*chat.TRAIN_ON)  # turns that are targets (sft); chat
  data.allow_control_tokens = flag(False)  # '<|x|>' as one token; encode
  data.add_bos = flag(None)  # None = as the tokenizer does; encode
  data.add_eos = flag(True)  # end each completion with EOS; encode
  # tokens of prompt + completion; encode
  data.max_length = whole(512, least=2, most=_LONGEST)
  # tokens; encode
  data.prompt_max_length = whole(0, most=_LONGEST, zero='max_length - 1')
  # of a prompt + completion longer than max_length; truncation
  data.truncation = choice(*truncation.POLICIES, default='keep_prompt_end')
  data.drop_duplicates = flag(True)  # of whole records; encode
  data.strict = flag(False)  # refuse unusable rows, drop none; encode
  # a prompt's comparisons weigh one together; prompt_weights
  data.weigh_prompts = flag(False)
  # of the comparisons to train on, the share with sides swapped; label_noise
  data.flip_share = within(0.0, 0, 1)
  data.flip_seed = seed(0)  # which comparisons these are; label_noise
  data.layout = choice(*rows.LAYOUTS)  # how completions lie in rows; rows
  # tokens per row; rows
  data.row_length = whole(0, most=_LONGEST, zero='data.max_length')
  data.max_shapes = whole(4, least=1)  # compiled row counts per epoch; pipeline
  return data


def _model() -> Section:
  model = Section()
  model.init_from = folder()  # of Hugging Face or of a run; weights
  model.preset = choice(*presets.names(), default='')  # random weights; presets
  # tokens, with a preset only; presets
  model.vocab_size = whole(0, most=_VOCABULARY, zero="the tokenizer's")
  model.allow_larger_vocab = flag(False)  # rows without a token; inputs
  # for tokens that the model has no row for, the mean of its table; inputs
  model.add_rows = flag(False)
  model.router_aux_coef = at_least(None, 0)  # None = the model's; experts
  # in the backward pass, 'auto' = none on CPU, dots elsewhere; numerics
  model.remat = choice('auto', *decoder_config.REMAT)
  # the kernel; numerics
  model.attention = choice(*decoder_config.ATTENTION)
  # queries per block of dense attention; attention
  model.attention_block = whole(128, least=1)
  model.scan_layers = flag(True)  # one body for all; False = unrolled; numerics
  # layers per step of the loop, 2 = double buffering; numerics
  model.scan_unroll = whole(1, least=1, like=2)
  return model


def _adapter() -> Section:
  adapter = Section()
  # LoRA's; adapters
  adapter.rank = whole(0, most=_RANK, zero='all weights are trained', like=16)
  adapter.alpha = above(16.0, 0)  # A B counts alpha / rank times; adapters
  adapter.rslora = flag(False)  # A B counts alpha / sqrt(rank) times; adapters
  # '' = all linear maps; adapter_spec
  adapter.targets = text("patterns with commas between, e.g. 'query,value'")
  adapter.init = choice(*adapter_spec.INITS)  # the other is random; adapters
  adapter.init_from = folder('a PEFT folder')  # replaces init; peft_checkpoint
  adapter.base = choice(*adapter_spec.BASES)  # frozen kernels; quantized
  adapter.export = choice(*adapter_spec.EXPORTS)  # export
  return adapter


def _reference() -> Section:
  reference = Section()
  reference.mode = choice('params', 'adapter_off', 'cache', 'none')  # reference
  reference.init_from = folder()  # '' = the policy's first weights; weights
  # its weights stay in the host's memory, a layer at a time goes over; weights
  reference.offload = flag(False)
  return reference


def _loss() -> Section:
  loss = Section()
  loss.terms = Section()  # loss name -> weight, see TERM
  # Keywords of the registered losses and options; None = their own defaults.
  for key in catalogue.hyper_names():
    loss.add(key, number(None))
  for key, choices in catalogue.static_choices().items():
    is_flag = set(choices) == {True, False}
    loss.add(key, flag(None) if is_flag else choice(*choices, default=None))
  for key in catalogue.switches():
    loss.add(key, flag(None))
  # Two of them, by narrower rules.
  loss.beta = above(None, 0, like=0.1)  # strength of the pull to the reference
  loss.label_smoothing = within(None, 0, 0.5)  # share of flipped labels
  return loss


def _optim() -> Section:
  optim = Section()
  optim.name = choice(*optimizers())  # optim
  optim.learning_rate = above(1e-6, 0)  # at the end of the warm-up; train_step
  optim.schedule = choice(*schedules(), default='linear')  # after it; optim
  optim.warmup_steps = whole(0, zero='no warm-up')  # updates; optim
  optim.warmup_fraction = within(0.0, 0, 1)  # of all updates; job
  optim.final_fraction = within(0.0, 0, 1)  # of the learning rate; optim
  optim.weight_decay = at_least(0.0, 0)  # times the learning rate; optim
  optim.b1 = within(None, 0, 1)  # decay of the first moment; optim
  optim.b2 = within(None, 0, 1)  # decay of the second moment; optim
  optim.eps = above(None, 0, like=1e-8)  # on the second moment's root; optim
  # of the first moment; the second one stays float32; optim
  optim.moments_dtype = choice('float32', 'bfloat16')
  optim.clip_norm = at_least(0.0, 0, zero='no clipping')  # global norm; optim
  # Other keywords of the registered functions; None = their own defaults.
  for keywords in (*optimizers().values(), *schedules().values()):
    for key in keywords:
      optim.add(key, number(None))
  return optim


def _train() -> Section:
  train = Section()
  # updates; job
  train.num_steps = whole(0, zero='train.num_epochs says how long')
  # passes over data.train; job
  train.num_epochs = at_least(0.0, 0, zero='train.num_steps says how long')
  # prompts per update; pipeline
  train.batch_size = whole(32, least=1, most=_BATCH)
  # parts of an update; pipeline
  train.microbatches = whole(1, least=1, most=_BATCH)
  # updates between two evaluations; train
  train.eval_every = whole(0, zero='only at the start and the end')
  train.save_every = whole(0, zero='only at the end')  # updates; train
  # of wall time since the last checkpoint, besides save_every; train
  train.save_every_minutes = at_least(0.0, 0, zero='by updates only')
  # updates whose numbers are not finite, left out before the run stops; train
  train.skip_bad_steps = whole(0, zero='it stops at the first')
  # without a poll of the loops, after which the run ends with code 3; watchdog
  train.watchdog_minutes = at_least(60.0, 0, zero='it may be silent for ever')
  train.profile_steps = steps()  # from:to, written to profile/; clock
  train.keep_checkpoints = whole(2, least=1)  # newest ones kept; checkpoints
  # the highest of a held-out metric, or with '-' before it the lowest; best
  train.keep_best = text("a metric, e.g. 'rewards/accuracies' or '-loss'")
  return train


def _eval() -> Section:
  evaluation = Section()
  # prompts per step; evaluate
  evaluation.batch_size = whole(32, least=1, most=_BATCH)
  evaluation.max_comparisons = whole(0, zero='all')  # held out; datasets
  evaluation.num_samples = whole(0, zero='none')  # held-out prompts; sample
  # '' = what the run's losses read; `results --recompute` can do the rest; job
  evaluation.score_for = names('losses and options, e.g. kto,wpo')
  return evaluation


def _sample() -> Section:
  sample = Section()
  # '' = the held-out prompts; datasets
  sample.prompts = text('a JSONL file with prompt or messages')
  sample.num_prompts = whole(0, zero='all')  # the first ones; sample
  sample.num_samples = whole(1, least=1)  # per prompt; sample
  sample.max_new_tokens = whole(128, least=1, most=_LONGEST)  # tokens; generate
  # samples per batch; sample
  sample.batch_size = whole(64, least=1, most=_BATCH)
  sample.seed = seed(0)  # a text depends on it and on its number; sample
  sample.temperature = at_least(1.0, 0, zero='greedy')  # generate
  sample.top_k = whole(0, zero='all')  # tokens kept; generate
  sample.top_p = share(1.0)  # probability kept, after top_k; generate
  sample.min_p = within(0.0, 0, 1)  # of the highest probability; generate
  # further stop tokens; sample
  sample.stop = names("tokens with commas between, e.g. '<|im_end|>'")
  return sample


def _log() -> Section:
  log = Section()
  log.tracker = choice(*trackers.KINDS)  # beside metrics.jsonl; trackers
  log.project = name('dpo_jax', 'a name')  # of the tracker; trackers
  log.group = text('a name')  # of runs; '' = the sweep, if any; trackers
  return log


def _precision() -> Section:
  precision = Section()
  # 'auto' = float32 on CPU, bfloat16 elsewhere; numerics
  precision.compute = choice('float32', 'bfloat16', 'auto', default='auto')
  # of the reference's weights on the devices, cast when they were read; weights
  precision.reference = choice('float32', 'bfloat16')
  # positions projected at one time, 'auto' = 1024 on CPU, 4096 on GPU, 2048 on
  # TPU, or as 0 if that fits; 0 = logits are kept for the backward; output_head
  precision.head_chunk = whole_or_auto(like=4096)
  return precision


def _mesh() -> Section:
  mesh = Section()
  mesh.data = num_parts(-1)  # copies of the model; sharding
  mesh.fsdp = num_parts(1)  # parts of every parameter; sharding
  mesh.tensor = num_parts(1)  # parts of heads, MLP and vocabulary; sharding
  for axis in MESH_AXES:
    mesh.add(axis, num_parts(1))
  return mesh


def _leaves(section: Section, prefix: str):
  for key, value in vars(section).items():
    if isinstance(value, Section):
      yield from _leaves(value, f'{prefix}{key}.')
    else:
      yield f'{prefix}{key}', value


def _config(section: Section) -> ConfigDict:
  config = ConfigDict()
  for key, value in vars(section).items():
    if isinstance(value, Section):
      config[key] = _config(value)
    elif value.default is None:
      config[key] = config_dict.placeholder(value.kind)
    elif value.kind is object:  # a text or a tuple
      config[key] = config_dict.FieldReference(value.default, field_type=object)
    else:
      config[key] = value.default
  return config


def _read_optim(decorator: str) -> dict[str, Mapping[str, float]]:
  return {
    function.name: {word.name: word.default for word in function.keywords}
    for function in catalogue.read_functions(_OPTIM, decorator)
  }
