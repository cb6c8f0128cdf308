"""config.rules: every kind of bad value and of bad key, and its words."""

import math

import pytest

from dpo_jax.config import knobs, rules
from dpo_jax.types import InputError

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
  ('precision.head_chunk=-1', ("'auto'", '>= 0')),
  ('precision.head_chunk=atuo', ("'auto'",)),
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


@pytest.mark.parametrize('override,words', BAD_VALUES, ids=lambda x: str(x))
def test_refuses_a_bad_value(refusal, override, words):
  message = refusal('dpo', override)
  assert message.startswith(f'config.{override.partition("=")[0]}: ')
  for word in words:
    assert word in message


@pytest.mark.parametrize('key,nearest', BAD_KEYS)
def test_refuses_an_unknown_key_and_names_the_nearest(refusal, key, nearest):
  message = refusal('dpo', f'{key}=1')
  assert message.startswith(f'config.{key}: ')
  assert nearest in message


# (knob, values that it takes, values that it refuses)
KNOBS = [
  (rules.whole(3, least=2), (2, 10**9), (1, 2.0, True, None, '3')),
  (rules.seed(0), (0, 2**32 - 1), (-1, 2**32, 1.0, False)),
  (rules.num_parts(1), (-1, 1, 8), (0, -2, 1.0, True)),
  (rules.number(None), (None, 0, -1.5), (math.nan, math.inf, '1', True)),
  (rules.above(1.0, 0), (1e-9, 3), (0, -1, math.nan, None)),
  (rules.above(None, 0, like=0.1), (None, 1e-9), (0.0, math.inf)),
  (rules.at_least(0.0, 0), (0, 2.5), (-1e-9, math.inf)),
  (rules.within(0.0, 0, 0.5), (0, 0.49), (0.5, -0.1, math.nan)),
  (rules.share(1.0), (1e-9, 1), (0, 1.1)),
  (rules.flag(False), (True, False), (0, 1, None, 'true')),
  (rules.flag(None), (True, False, None), (0, '')),
  (rules.choice('a', 'b'), ('a', 'b'), ('c', '', None, 1)),
  (rules.choice('a', 'b', default=''), ('a', ''), ('c', None)),
  (rules.choice('a', default=None), ('a', None), ('',)),
  (rules.text('words'), ('', 'x'), (None, 1)),
  (rules.folder(), ('', 'runs/x'), (None, ('x',))),
  (rules.json_text('{}'), ('', '{"a": [1]}'), ('[1]', '{', None, 'x')),
  (rules.name('a', 'words'), ('a', 'b.jsonl'), ('', 'a,b', ',', None)),
  (rules.names('words'), ('', 'a', 'a,b', ('a', 'b')), (',', (), (1,), None)),
  (rules.required(rules.names('words')), ('a', ('a',)), ('', ',', None)),
  (
    rules.numbers('words'),
    ('', '1,0.5', 2, (1, 0.5), ()),
    ('-1', '1,x', None, 'nan', (math.inf,)),
  ),
]


@pytest.mark.parametrize('knob,taken,refused', KNOBS)
def test_each_rule_takes_and_refuses(knob, taken, refused):
  for value in taken:
    assert knob.rule.holds(value), value
  for value in refused:
    assert not knob.rule.holds(value), value


def test_a_choice_defaults_to_its_first_word_and_others_to_unset():
  assert rules.choice('a', 'b').default == 'a'
  assert rules.choice('a', 'b', default='b').default == 'b'
  assert rules.choice('a', default=None).kind is str
  assert rules.text('words').default == rules.names('words').default == ''


def test_the_words_of_a_rule_give_an_example_and_the_meaning_of_zero():
  assert rules.whole(8, least=1).rule.allowed == 'a whole number >= 1, e.g. 8'
  assert rules.whole(1, least=1).rule.allowed == 'a whole number >= 1'
  words = 'a whole number >= 0, e.g. 16 (0 = all)'
  assert rules.whole(0, zero='all', like=16).rule.allowed == words
  assert rules.at_least(0.0, 0, zero='off').rule.allowed == (
    'a number >= 0 (0 = off)'
  )


def test_a_refusal_is_one_printable_line():
  error = rules.refused('data.train', 'a\nb' * 500, rules.Rule('words', bool))
  assert isinstance(error, InputError)
  assert str(error).startswith("config.data.train: 'a\\nb")
  assert str(error).isprintable() and len(str(error)) < 200


@pytest.mark.parametrize(
  'override',
  [
    *(f'optim.learning_rate={x}' for x in ('1e300', '1e-60', '4e38')),
    *('loss.beta=1e39', 'loss.beta=1e-50', 'loss.terms.ipo=1e300'),
    *('optim.weight_decay=1e-50', 'sample.temperature=1e-39'),
  ],
)
def test_a_number_that_float32_has_not_is_refused(refusal, override):
  assert 'it is 0 or infinite in float32; fix: use' in refusal('dpo', override)


@pytest.mark.parametrize(
  'override',
  [
    *('data.row_length=2000000', 'data.max_length=2000000'),
    *('eval.batch_size=2000000', 'train.batch_size=2000000'),
    *('adapter.rank=1000000', 'model.vocab_size=20000000'),
    *('train.num_steps=3000000000', 'data.proportions=1e300'),
  ],
)
def test_a_size_that_no_machine_has_is_refused(refusal, override):
  message = refusal('dpo', override)
  assert 'is not allowed' in message and 'fix: use ' in message


def test_every_float_key_has_the_bounds_of_float32():
  for key, knob in knobs.flat().items():
    for value in (1e39, 1e-50) if knob.kind is float else ():
      assert not knob.rule.holds(value), key
