"""config.check: what does not go together, meshes, structure."""

import pytest

from dpo_jax import config
from dpo_jax.types import InputError

# (stage, overrides, key named, words)
BAD_TOGETHER = [
  ('dpo', 'loss.terms.sigmoid=0', 'loss.terms', 'sigmoid=1'),
  ('dpo', 'loss.reduction=sum', 'loss.reduction', 'ipo'),
  ('dpo', 'loss.terms.ipo=1 loss.reduction=max', 'loss.reduction', 'mean, sum'),
  ('sft', 'loss.beta=0.1', 'loss.beta', 'sigmoid'),
  ('sft', 'loss.terms.sigmoid=1', 'loss.terms', 'nll alone'),
  ('sft', 'reference.mode=params', 'reference.mode', 'none'),
  ('dpo', 'stage=sft', 'loss.terms', 'nll'),
  ('dpo', 'reference.mode=none', 'reference.mode', 'params or cache'),
  ('sft', 'reference.init_from=x', 'reference.init_from', 'none'),
  ('dpo', 'eval.score_for=ktoo', 'eval.score_for', "did you mean 'kto'"),
  ('sft', 'eval.score_for=dpop', 'reference.mode', 'dpop, which needs a'),
  (
    'dpo',
    'eval.score_for=tdpo1 reference.mode=cache',
    'reference.mode',
    'reads whole distributions',
  ),
  ('dpo', 'reference.mode=adapter_off', 'reference.mode', 'adapter.rank=16'),
  ('dpo', 'adapter.alpha=32', 'adapter.alpha', 'not used with adapter.rank=0'),
  ('dpo', 'adapter.base=nf4', 'adapter.base', 'adapter.rank=16'),
  ('dpo', 'adapter.rank=2 adapter.targets=quary', 'adapter.targets', "'query'"),
  ('dpo', 'adapter.rank=2 adapter.targets=q(', 'adapter.targets', 'regular'),
  (
    'dpo',
    'adapter.rank=2 adapter.init_from=x adapter.init=a_zero',
    'adapter.init',
    'adapter.init_from',
  ),
  (
    'dpo',
    'adapter.rank=2 reference.mode=adapter_off reference.init_from=x',
    'reference.init_from',
    'adapter_off',
  ),
  ('dpo', 'train.microbatches=3', 'train.microbatches', '1, 2, 4, 8'),
  ('dpo', 'train.num_epochs=1', 'train.num_steps', 'both are set'),
  ('dpo', 'train.num_steps=0', 'train.num_steps', 'neither is set'),
  ('dpo', 'optim.warmup_steps=2', 'optim.warmup_steps', 'train.num_steps=2'),
  (
    'dpo',
    'optim.warmup_steps=1 optim.warmup_fraction=0.1',
    'optim.warmup_fraction',
    'are both set',
  ),
  ('dpo', 'optim.name=lion optim.eps=1e-8', 'optim.eps', 'not used by lion'),
  (
    'dpo',
    'optim.schedule=constant optim.final_fraction=0.1',
    'optim.final_fraction',
    'constant',
  ),
  ('dpo', 'data.row_length=64', 'data.row_length', 'data.max_length=128'),
  ('dpo', 'data.prompt_max_length=128', 'data.prompt_max_length', '128'),
  ('dpo', 'data.train=a,b data.proportions=1', 'data.proportions', '2 sources'),
  ('dpo', 'data.columns=a=b', 'data.columns', 'is for data files'),
  ('dpo', 'data.columns=a', 'data.columns', 'neither NEW=OLD nor -OLD'),
  ('dpo', 'data.train_on=generation', 'data.train_on', "stage 'sft'"),
  ('dpo', 'data.train_on=all', 'data.train_on', 'last, all_assistant'),
  ('dpo', 'data.template_args=[1]', 'data.template_args', 'a JSON object'),
  ('dpo', 'data.template_args={"tools":1}', 'data.template_args', "'tools' is"),
  (
    'dpo',
    'data.use_chat_template=yes',
    'data.use_chat_template',
    'auto, always',
  ),
  (
    'dpo',
    'data.use_token_ids=true data.chat_template=x.jinja',
    'data.chat_template',
    'use_token_ids',
  ),
  ('dpo', 'model.init_from=x', 'model.init_from', 'both are set'),
  ('dpo', 'model.preset=', 'model.init_from', 'neither is set'),
  ('dpo', 'tokenizer=', 'tokenizer', 'byte'),
  (
    'dpo',
    'model.preset= model.init_from=x model.vocab_size=9',
    'model.vocab_size',
    'leave it 0',
  ),
  ('dpo', 'mesh.fsdp=-1', 'mesh', 'one axis'),
  *(
    (
      'dpo',
      f'optim.name={name} optim.moments_dtype=bfloat16',
      'optim.moments_dtype',
      f"'bfloat16' is not used by {name}; fix: set it to float32, or "
      'optim.name to adamw or lion',
    )
    for name in ('rmsprop', 'adafactor')
  ),
  *(
    ('dpo', f'{key}={value} {others}', key, f'{words}; fix: {fix}')
    for key, value in (
      ('precision.reference', 'bfloat16'),
      ('reference.offload', 'true'),
    )
    for others, words, fix in (
      (
        'reference.mode=none loss.terms.sigmoid=0 loss.terms.simpo=1',
        'is not used: no loss reads a reference',
        'leave it out',
      ),
      (
        'loss.terms.sigmoid=0 loss.terms.simpo=1',
        'is not used: no loss reads a reference',
        'leave it out',
      ),
      (
        'adapter.rank=2 reference.mode=adapter_off',
        "the reference is the policy's own base",
        'use adapter.base',
      ),
      (
        'adapter.rank=2',
        "the reference is the policy's own base",
        'use adapter.base',
      ),
    )
  ),
  (
    'dpo',
    'loss.tr_dpo=true precision.reference=bfloat16',
    'precision.reference',
    'moves the reference by less than bfloat16 resolves; fix: leave it out',
  ),
  (
    'dpo',
    'loss.tr_dpo=true reference.offload=true',
    'reference.offload',
    'moves the reference on the devices; fix: leave it out',
  ),
  (
    'dpo',
    'reference.mode=cache reference.offload=true',
    'reference.offload',
    "'cache', which drops the reference once it has scored",
  ),
]


@pytest.mark.parametrize('stage,overrides,key,words', BAD_TOGETHER)
def test_refuses_what_does_not_go_together(
  refusal, stage, overrides, key, words
):
  message = refusal(stage, overrides)
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
def test_mesh_must_fit_the_devices(load, overrides, num_devices, fits):
  loaded = load('dpo', overrides)
  if fits:
    config.validate(loaded, num_devices)
  else:
    with pytest.raises(InputError, match=f'not fit {num_devices} device'):
      config.validate(loaded, num_devices)


def test_validate_refuses_another_structure(quickstart):
  loaded = config.load(quickstart('dpo'))
  with loaded.unlocked():
    loaded.train.steps = 3
  with pytest.raises(InputError, match='config.train.steps: no such key'):
    config.validate(loaded)
  with loaded.unlocked():
    del loaded.train['steps'], loaded.train['batch_size']
  with pytest.raises(InputError, match='config.train.batch_size: is missing'):
    config.validate(loaded)
