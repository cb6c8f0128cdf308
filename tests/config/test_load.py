"""config.py and its checks: every knob, every kind of bad value."""

import json
import pathlib
import re

import pytest
from ml_collections.config_dict import ConfigDict

from dpo_jax import config, optim
from dpo_jax.config import check as config_check
from dpo_jax.config import rules as config_rules
from dpo_jax.data.batches import rows
from dpo_jax.losses import catalogue as config_losses
from dpo_jax.run import inputs
from dpo_jax.types import InputError

ROOT = pathlib.Path(__file__).resolve().parents[2]
EXPERIMENTS = sorted((ROOT / 'experiments').glob('*.py'))
QUICKSTART = str(ROOT / 'experiments' / 'quickstart.py')
DPO = f'{QUICKSTART}:stage=dpo,runlocal'
SFT = f'{QUICKSTART}:stage=sft,runlocal'

# (overrides, what the message must hold beside the key of the last override)
BAD_VALUES = [
  # Ranges.
  ('loss.beta=-1', ('-1', '> 0')),
  ('loss.beta=0', ('> 0',)),
  ('loss.beta=nan', ('nan', '> 0')),
  ('loss.beta=inf', ('inf', '> 0')),
  ('loss.label_smoothing=0.5', ('0.5', '[0, 0.5)')),
  ('loss.label_smoothing=-0.1', ('-0.1',)),
  ('loss.label_smoothing=nan', ('nan',)),
  ('loss.terms.sigmoid=nan', ('nan',)),
  ('loss.terms.sigmoid=-1', ('-1', '>= 0')),
  ('seed=-1', ('-1',)),
  ('seed=4294967296', ('2**32',)),
  ('data.max_length=1', ('>= 2',)),
  ('data.max_length=-5', ('-5',)),
  ('data.eval_pairs=0', ('>= 1',)),
  ('data.max_shapes=0', ('>= 1',)),
  ('data.row_length=-1', ('-1',)),
  ('model.attention_block=0', ('>= 1',)),
  ('model.vocab_size=-2', ('-2',)),
  ('optim.learning_rate=0', ('> 0',)),
  ('optim.learning_rate=nan', ('nan',)),
  ('optim.weight_decay=-0.1', ('-0.1',)),
  ('optim.b1=1', ('[0, 1)',)),
  ('optim.b2=-0.5', ('-0.5',)),
  ('optim.eps=0', ('> 0',)),
  ('optim.clip_norm=-1', ('no clipping',)),
  ('optim.warmup_steps=-1', ('-1',)),
  ('optim.warmup_fraction=1.5', ('1.5',)),
  ('optim.final_fraction=2', ('2',)),
  ('train.batch_size=0', ('>= 1',)),
  ('train.batch_size=-4', ('-4',)),
  ('train.microbatches=0', ('>= 1',)),
  ('train.num_steps=-1', ('-1',)),
  ('train.num_epochs=nan', ('nan',)),
  ('train.eval_every=-1', ('-1',)),
  ('train.keep_checkpoints=0', ('>= 1',)),
  ('eval.batch_size=0', ('>= 1',)),
  ('eval.max_comparisons=-1', ('-1',)),
  ('precision.head_chunk=0', ('>= 1',)),
  ('mesh.data=0', ('-1 for the rest',)),
  ('mesh.fsdp=-2', ('-2',)),
  # Types.
  ('train.batch_size=3.5', ("'3.5'", 'whole number')),
  ('train.batch_size=many', ("'many'", 'whole number')),
  ('train.batch_size=', ("''",)),
  ('loss.beta=strong', ("'strong'", 'number')),
  ('data.strict=maybe', ("'maybe'", 'true or false')),
  ('data.train=', ("''", 'file')),
  ('data.train=(1,2)', ('(1, 2)', 'file')),
  ('data.proportions=0.5,x', ("'0.5,x'", '1,0.5')),
  ('data.proportions=-1,1', ('>= 0',)),
  ('data.eval=a,b', ("'a,b'",)),
  # Choices, with the nearest.
  ('stage=dpoo', ("'dpo'",)),
  ('data.layout=pakced', ("did you mean 'packed'",)),
  ('data.truncation=keep_prompt', ("did you mean 'keep_prompt_end'",)),
  ('data.row_format=pair', ("did you mean 'pairs'",)),
  ('optim.name=adam', ("did you mean 'adamw'",)),
  ('optim.schedule=cosin', ("did you mean 'cosine'",)),
  ('precision.compute=float16', ("did you mean 'bfloat16'",)),
  ('model.preset=tinny', ("did you mean 'tiny'",)),
  ('model.remat=ful', ("did you mean 'full'",)),
  ('reference.mode=param', ("did you mean 'params'",)),
  ('adapter.rank=-1', ('whole number >= 0', '0 = all weights')),
  ('adapter.alpha=0', ('> 0',)),
  ('adapter.init=b_zeros', ("did you mean 'b_zero'",)),
  ('adapter.base=int4', ("did you mean 'int8'", 'nf4')),
  ('adapter.export=pefd', ("did you mean 'peft'",)),
]

BAD_KEYS = [
  ('loss.betta', 'loss.beta'),
  ('betta', 'loss.beta'),
  ('optim.learning_rat', 'optim.learning_rate'),
  ('lr', 'optim'),
  ('train.bach_size', 'train.batch_size'),
  ('loss.terms.ipoo', 'loss.terms.ipo'),
  ('loss.terms.zzz', 'did you mean'),
  ('data.max_len', 'data.max_length'),
  ('data', 'data.train'),  # a section has keys, no value
  ('loss.terms', 'loss.terms.sigmoid'),
  ('train.batch_size.x', 'train.batch_size'),
]

# (experiment, overrides, key named, words)
BAD_TOGETHER = [
  (DPO, 'loss.terms.sigmoid=0', 'loss.terms', 'sigmoid=1'),
  (DPO, 'loss.reduction=sum', 'loss.reduction', 'ipo'),
  (DPO, 'loss.terms.ipo=1 loss.reduction=max', 'loss.reduction', 'mean, sum'),
  (SFT, 'loss.beta=0.1', 'loss.beta', 'sigmoid'),
  (SFT, 'loss.terms.sigmoid=1', 'loss.terms', 'nll alone'),
  (SFT, 'reference.mode=params', 'reference.mode', 'none'),
  (DPO, 'stage=sft', 'loss.terms', 'nll'),
  (DPO, 'reference.mode=none', 'reference.mode', 'params or cache'),
  (SFT, 'reference.init_from=x', 'reference.init_from', 'none'),
  (DPO, 'reference.mode=adapter_off', 'reference.mode', 'adapter.rank=16'),
  (DPO, 'adapter.alpha=32', 'adapter.alpha', 'not used with adapter.rank=0'),
  (DPO, 'adapter.base=nf4', 'adapter.base', 'adapter.rank=16'),
  (DPO, 'adapter.rank=2 adapter.targets=quary', 'adapter.targets', "'query'"),
  (DPO, 'adapter.rank=2 adapter.targets=q(', 'adapter.targets', 'regular'),
  (
    DPO,
    'adapter.rank=2 adapter.init_from=x adapter.init=a_zero',
    'adapter.init',
    'adapter.init_from',
  ),
  (
    DPO,
    'adapter.rank=2 reference.mode=adapter_off reference.init_from=x',
    'reference.init_from',
    'adapter_off',
  ),
  (DPO, 'train.microbatches=3', 'train.microbatches', '1, 2, 4, 8'),
  (DPO, 'train.num_epochs=1', 'train.num_steps', 'both are set'),
  (DPO, 'train.num_steps=0', 'train.num_steps', 'neither is set'),
  (DPO, 'optim.warmup_steps=2', 'optim.warmup_steps', 'train.num_steps=2'),
  (
    DPO,
    'optim.warmup_steps=1 optim.warmup_fraction=0.1',
    'optim.warmup_fraction',
    'are both set',
  ),
  (DPO, 'optim.name=lion optim.eps=1e-8', 'optim.eps', 'not used by lion'),
  (
    DPO,
    'optim.schedule=constant optim.final_fraction=0.1',
    'optim.final_fraction',
    'constant',
  ),
  (DPO, 'data.row_length=64', 'data.row_length', 'data.max_length=128'),
  (DPO, 'data.prompt_max_length=128', 'data.prompt_max_length', '128'),
  (DPO, 'data.train=a,b data.proportions=1', 'data.proportions', '2 sources'),
  (DPO, 'data.train_on=generation', 'data.train_on', "stage 'sft'"),
  (DPO, 'data.train_on=all', 'data.train_on', 'last, all_assistant'),
  (DPO, 'data.template_args=[1]', 'data.template_args', 'a JSON object'),
  (DPO, 'data.template_args={"tools":1}', 'data.template_args', "'tools' is"),
  (DPO, 'data.use_chat_template=yes', 'data.use_chat_template', 'auto, always'),
  (
    DPO,
    'data.use_token_ids=true data.chat_template=x.jinja',
    'data.chat_template',
    'use_token_ids',
  ),
  (DPO, 'model.init_from=x', 'model.init_from', 'both are set'),
  (DPO, 'model.preset=', 'model.init_from', 'neither is set'),
  (DPO, 'tokenizer=', 'tokenizer', 'byte'),
  (
    DPO,
    'model.preset= model.init_from=x model.vocab_size=9',
    'model.vocab_size',
    'leave it 0',
  ),
  (DPO, 'mesh.fsdp=-1', 'mesh', 'one axis'),
]


def _load(experiment: str, overrides: str) -> ConfigDict:
  pairs = [part.split('=', 1) for part in overrides.split()]
  loaded = config.load(experiment, pairs)
  config.validate(loaded)
  return loaded


def _refusal(experiment: str, overrides: str) -> str:
  with pytest.raises(InputError) as error:
    _load(experiment, overrides)
  message = str(error.value)
  assert '; fix: ' in message and '\n' not in message
  return message


@pytest.mark.parametrize('override,words', BAD_VALUES, ids=lambda x: str(x))
def test_refuses_a_bad_value(override, words):
  message = _refusal(DPO, override)
  assert message.startswith(f'config.{override.partition("=")[0]}: ')
  for word in words:
    assert word in message


@pytest.mark.parametrize('key,nearest', BAD_KEYS)
def test_refuses_an_unknown_key_and_names_the_nearest(key, nearest):
  message = _refusal(DPO, f'{key}=1')
  assert message.startswith(f'config.{key}: ')
  assert nearest in message


@pytest.mark.parametrize('experiment,overrides,key,words', BAD_TOGETHER)
def test_refuses_what_does_not_go_together(experiment, overrides, key, words):
  message = _refusal(experiment, overrides)
  assert message.startswith(f'config.{key}: ')
  assert words in message


@pytest.mark.parametrize(
  'overrides,num_devices,fits',
  [
    ('mesh.data=-1', 8, True),
    ('mesh.data=4 mesh.fsdp=2', 8, True),
    ('mesh.data=1 mesh.fsdp=-1 mesh.tensor=2', 8, True),
    ('mesh.data=4', 8, False),  # 4 of 8 devices would idle
    ('mesh.fsdp=3', 8, False),
    ('mesh.data=16', 8, False),
  ],
)
def test_mesh_must_fit_the_devices(overrides, num_devices, fits):
  loaded = _load(DPO, overrides)
  if fits:
    config.validate(loaded, num_devices)
  else:
    with pytest.raises(InputError, match=f'not fit {num_devices} device'):
      config.validate(loaded, num_devices)


def test_every_knob_has_a_rule_that_its_default_follows():
  values = config_rules.flatten(config.base())
  options = {
    *config_losses.hyper_names(),
    *config_losses.static_choices(),
    *config_losses.switches(),
  }
  knobs = set(values) - {f'loss.{option}' for option in options}
  assert knobs == set(config_rules.RULES)
  for key, value in values.items():
    # Which data is the one thing that has no default.
    assert config_rules.rule(key).holds(value) == (key != 'data.train'), key


def test_every_knob_has_a_trailing_comment():
  source = pathlib.Path(config.__file__).read_text()
  knob = re.compile(r'  (\w+)\.(\w+) = (?!_\w+\(\)$)')
  body = source[source.index('def base') : source.index('def load')]
  body += source[source.index('def _data') : source.index('def _text_or')]
  lines = [line for line in body.splitlines() if knob.match(line)]
  assert len(lines) >= 50
  assert not [line for line in lines if '  # ' not in line]


def test_choices_are_those_of_the_code_that_reads_them():
  assert set(config_rules.RULES['optim.name'].choices) == set(optim.OPTIMIZERS)
  schedules = config_rules.RULES['optim.schedule'].choices
  assert set(schedules) == set(optim.SCHEDULES)
  assert config_rules.RULES['data.layout'].choices == rows.LAYOUTS
  assert config_check.EMBEDDED == tuple(inputs.SYNTHETIC)


def test_validate_refuses_another_structure():
  loaded = config.load(DPO)
  with loaded.unlocked():
    loaded.train.steps = 3
  with pytest.raises(InputError, match='config.train.steps: no such key'):
    config.validate(loaded)
  with loaded.unlocked():
    del loaded.train['steps'], loaded.train['batch_size']
  with pytest.raises(InputError, match='config.train.batch_size: is missing'):
    config.validate(loaded)


def test_terms_are_set_freely_and_only_used_ones_remain():
  # From an experiment that chose sigmoid: the DPO + NLL mix of RPO, then IPO.
  loaded = _load(DPO, 'loss.terms.nll=0.2')
  assert config.loss_terms(loaded) == {'nll': 0.2, 'sigmoid': 1.0}
  loaded = _load(DPO, 'loss.terms.sigmoid=0 loss.terms.ipo=1')
  assert loaded.loss.terms.to_dict() == {'ipo': 1.0}
  assert config.loss_hyper(loaded) == {'beta': 0.1}
  assert config.loss_static(loaded) == {}
  loaded = _load(DPO, 'loss.terms.ipo=1 loss.reduction=sum')
  assert config.loss_static(loaded) == {'reduction': 'sum'}


def test_none_unsets_an_option():
  loaded = _load(
    DPO, 'loss.beta=None loss.terms.sigmoid=0 loss.terms.nll=1 optim.b1=None'
  )
  assert loaded.loss.beta is None and loaded.optim.b1 is None


def test_overrides_take_text_or_values_of_the_key_s_type():
  loaded = config.load(
    DPO,
    [
      ('loss.beta', 1),
      ('optim.learning_rate', '3e-4'),
      ('data.train', ('a.jsonl', 'b,c.jsonl')),
      ('data.proportions', '0.7,0.3'),
      ('train.batch_size', '16'),
    ],
  )
  assert (loaded.loss.beta, loaded.optim.learning_rate) == (1.0, 3e-4)
  assert config.source_names(loaded.data.train) == ('a.jsonl', 'b,c.jsonl')
  assert config.proportions(loaded) == (0.7, 0.3)
  assert loaded.train.batch_size == 16
  with pytest.raises(InputError, match='config.train.batch_size: 1.5'):
    config.load(DPO, [('train.batch_size', 1.5)])


def test_several_sources_in_one_text_have_equal_shares():
  loaded = _load(DPO, 'data.train=../a.jsonl,b.jsonl')
  assert config.source_names(loaded.data.train) == ('../a.jsonl', 'b.jsonl')
  assert config.proportions(loaded) == (1.0, 1.0)


def test_a_loaded_config_is_locked_and_becomes_json():
  loaded = config.load(DPO)
  for section in (loaded, loaded.loss, loaded.loss.terms, loaded.data):
    with pytest.raises((AttributeError, KeyError)):
      section.typo = 1
  resolved = json.loads(json.dumps(loaded.to_dict()))
  assert resolved['data']['train'] == 'synthetic'
  assert resolved['loss']['terms'] == {'sigmoid': 1.0}


def test_parse_arg_takes_its_types_from_the_defaults():
  args = config.parse_arg(
    'loss=ipo,steps=3,rate=1e-3,runlocal',
    loss='sigmoid',
    steps=1,
    rate=0.5,
    runlocal=False,
    other='x',
  )
  assert vars(args) == {
    'loss': 'ipo',
    'steps': 3,
    'rate': 1e-3,
    'runlocal': True,
    'other': 'x',
  }
  assert not config.parse_arg('runlocal=false', runlocal=True).runlocal


@pytest.mark.parametrize(
  'arg,words',
  [
    ('runlcal', "did you mean 'runlocal'"),
    ('steps', 'steps=INT'),
    ('steps=abc', "'abc'"),
    ('steps=', 'has no value'),
    ('runlocal=2', "'2'"),
    ('=3', 'arguments: steps, runlocal'),
  ],
)
def test_parse_arg_refuses(arg, words):
  with pytest.raises(InputError, match='config argument') as error:
    config.parse_arg(arg, steps=1, runlocal=False)
  assert words in str(error.value) and '; fix: ' in str(error.value)


@pytest.mark.parametrize('path', EXPERIMENTS, ids=lambda p: p.stem)
def test_every_experiment_loads_validates_and_says_what_it_is(path):
  source = path.read_text()
  for word in ('Question: ', 'Command', 'Hardware: ', 'Expected: '):
    assert word in source.split('"""')[1], word
  config.validate(config.load(str(path)))
  local = config.load(f'{path}:runlocal')
  config.validate(local)
  config_check.check_paths(local)  # runs anywhere
  assert local.train.num_steps <= 10


@pytest.mark.parametrize('path', EXPERIMENTS, ids=lambda p: p.stem)
def test_every_point_of_every_sweep_is_valid(path):
  namespace = {'__name__': 'experiment'}
  exec(compile(path.read_text(), str(path), 'exec'), namespace)
  points = list(namespace.get('sweep', lambda: ())())
  for arg, overrides in points:
    config.validate(config.load(f'{path}:{arg}', overrides.items()))
  assert len({str(point) for point in points}) == len(points)


def test_the_stories_experiment_finds_its_files(shared, monkeypatch):
  monkeypatch.chdir(ROOT)  # its paths are relative to the repository
  if not pathlib.Path('../shared').exists():
    pytest.skip(f'{shared} is not beside the repository')
  config_check.check_paths(config.load('experiments/stories_dpo.py'))
