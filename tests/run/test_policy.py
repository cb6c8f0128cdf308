"""open_policy and read_run: a notebook's view of a run."""

import json
import subprocess
import sys

import commands
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dpo_jax
from dpo_jax import main as main_lib
from dpo_jax import types
from dpo_jax.models import output_head
from dpo_jax.run import datasets, inputs
from dpo_jax.types import InputError

TEMPLATE = (
  '{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}'
  '{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}'
)


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  folder = tmp_path_factory.mktemp('opened') / 'run'
  # As runs were stored before the key knew 'auto'.
  chunk = '--config.precision.head_chunk=1024'
  assert main_lib.main([commands.CONFIG, f'--workdir={folder}', chunk]) == 0
  return folder


@pytest.fixture(scope='module')
def policy(run):
  return dpo_jax.open_policy(run)


def by_hand(policy, prompt, completion):
  """Log-probability of ids after ids, from all logits of one text."""
  ids = np.concatenate([prompt, completion])
  n = len(ids)
  one = np.ones((1, n - 1), np.int32)
  rows = types.Rows(
    tokens=ids[None, :-1],
    positions=np.arange(n - 1)[None],
    prompt_id=one,
    branch=0 * one,
    targets=0 * one,
    completion_id=0 * one - 1,
  )
  hidden, _ = policy.model.hidden(policy.params, rows)
  logits = output_head.logits(policy.model.head(policy.params), hidden[0])
  logps = jax.nn.log_softmax(jnp.asarray(logits, jnp.float32))
  picked = logps[np.arange(n - 1), ids[1:]]
  return float(picked[len(prompt) - 1 :].sum())


def test_importing_the_package_imports_no_jax():
  code = (
    'import sys, dpo_jax; dir(dpo_jax); assert "jax" not in sys.modules; '
    'dpo_jax.read_run; assert "jax" not in sys.modules; '
    'assert "open_policy" in dir(dpo_jax)'
  )
  subprocess.run([sys.executable, '-c', code], check=True, cwd=commands.ROOT)
  with pytest.raises(AttributeError, match="no attribute 'opne_policy'"):
    _ = dpo_jax.opne_policy


def test_scores_are_those_that_the_run_saved(run, policy):
  # Data of the run as texts, in the order of its evaluation.
  config = commands.config_lib.load(commands.EXPERIMENT)
  data = inputs.read(config, run / 'cache', lambda line: None)
  part = data.evaluation
  records = [part.store[i] for i in part.indices]
  decode = policy.tokenizer.decode
  prompts = [decode(record.prompt) for record in records]
  saved = dpo_jax.read_run(run).examples['eval_2']
  for side in ('chosen', 'rejected'):
    texts = []
    for record in records:
      (one,) = record.comparisons
      index = one.winner if side == 'chosen' else one.loser
      texts.append(decode(record.completions[index]))
    scores = policy.score(prompts, texts)
    np.testing.assert_allclose(
      scores.logps, saved[f'policy_{side}'], rtol=1e-5, atol=1e-4
    )
    assert (scores.num_tokens == saved[f'{side}_tokens']).all()


def test_scores_are_log_probabilities_of_these_tokens(policy):
  prompts = ['a', 'A longer prompt. ', '']
  completions = [' b', 'x' * 70, 'é']
  scores = policy.score(prompts, completions)
  assert scores.num_tokens.tolist() == [3, 71, 3]  # bytes and EOS
  for i in range(3):
    assert policy.tokenizer.decode(scores.prompts[i]) == prompts[i]
    expected = by_hand(policy, scores.prompts[i], scores.completions[i])
    np.testing.assert_allclose(scores.logps[i], expected, rtol=1e-5)
  # Alone, among more than a batch of others, or by one prompt for all.
  many = policy.score('a', [' b'] * 40)
  np.testing.assert_allclose(many.logps, scores.logps[0], rtol=1e-5)


def test_other_parameters_give_other_scores(policy):
  before, params = policy.score('a', ['b']).logps, policy.params
  try:
    policy.params = jax.tree.map(lambda leaf: 1.1 * leaf, params)
    assert policy.score('a', ['b']).logps != before
  finally:
    policy.params = params
  assert policy.score('a', ['b']).logps == before


def test_messages_are_rendered_by_the_template(run, tmp_path):
  (tmp_path / 't.jinja').write_text(TEMPLATE)
  policy = dpo_jax.open_policy(run, chat_template=str(tmp_path / 't.jinja'))
  messages = [{'role': 'user', 'content': 'Hi'}]
  answer = [{'role': 'assistant', 'content': 'Yes'}]
  for completion in (answer, answer[0], 'Yes'):
    scores = policy.score([messages], [completion])
    ids = np.concatenate([scores.prompts[0], scores.completions[0]])
    text = policy.tokenizer.decode(ids, skip_special=False)
    assert text == '<|bos|><user>Hi<|eos|><assistant>Yes<|eos|>'
  (sample,) = policy.sample(messages, max_new_tokens=3)
  assert sample['prompt'].endswith('<assistant>')


def test_samples_follow_their_options(policy):
  greedy = policy.sample(['ab', 'c'], temperature=0.0, max_new_tokens=6)
  assert [one['prompt'] for one in greedy] == ['ab', 'c']
  assert all(1 <= one['num_tokens'] <= 6 for one in greedy)
  again = policy.sample('ab', num_samples=2, temperature=0.0, max_new_tokens=6)
  assert [one['token_ids'] for one in again] == 2 * [greedy[0]['token_ids']]
  one, other = (
    policy.sample('ab', num_samples=4, seed=seed, max_new_tokens=6)
    for seed in (1, 2)
  )
  assert [o['token_ids'] for o in one] != [o['token_ids'] for o in other]
  # The model's log-probability of the text, from all its logits.
  prompt = policy.score('ab', ['x']).prompts[0]
  np.testing.assert_allclose(
    greedy[0]['model_logp'],
    by_hand(policy, prompt, np.array(greedy[0]['token_ids'])),
    rtol=1e-4,
  )


@pytest.mark.parametrize(
  'call,words',
  [
    (lambda p: p.score('a', 'b'), 'completions: '),
    (lambda p: p.score('a', []), 'completions: '),
    (lambda p: p.score(['a'], ['b', 'c']), '2 for 1 prompts'),
    (lambda p: p.score('a', [3]), 'completions[0]: '),
    (lambda p: p.score([[{'role': 'x'}]], ['c']), 'completions[0]: '),
    (lambda p: p.sample('a', temprature=1.0), "'sample.temperature'"),
    (lambda p: p.sample('a', temperature=-1.0), 'config.sample.temperature'),
    (lambda p: p.sample([3]), 'prompts[0]: '),
  ],
)
def test_a_call_that_cannot_be_is_refused(call, words, policy):
  with pytest.raises(InputError) as error:
    call(policy)
  assert words in str(error.value) and '; fix: ' in str(error.value)


def test_what_is_no_model_is_refused(tmp_path):
  with pytest.raises(InputError, match='no such folder'):
    dpo_jax.open_policy(tmp_path / 'none')
  with pytest.raises(InputError):
    dpo_jax.open_policy(tmp_path)
  with pytest.raises(InputError, match='not a run'):
    dpo_jax.read_run(tmp_path)


def test_a_run_is_read_as_arrays(run):
  record = dpo_jax.read_run(run)
  assert record.done and record.config['loss']['terms'] == {'sigmoid': 1.0}
  assert record.ledger['train']['read'] == 4096
  lines = [
    json.loads(line)
    for line in (run / 'metrics.jsonl').read_text().split('\n')
    if line
  ]
  for split in ('train', 'eval'):
    own = [line for line in lines if line['split'] == split]
    columns = record.metrics[split]
    assert columns['step'].tolist() == [line['step'] for line in own]
    np.testing.assert_array_equal(
      columns['loss'], [line['loss'] for line in own]
    )
  arrays = record.examples['eval_2']
  assert arrays['uid'].dtype.kind == 'U' and len(arrays['uid'][0]) == 16
  assert len(arrays['prompt_id'][0]) == 32
  margins = arrays['reward_chosen'] - arrays['reward_rejected']
  np.testing.assert_allclose(
    margins.mean(), record.metrics['eval']['rewards/margins'][-1], rtol=1e-4
  )
  assert record.evaluations == {}


def test_prompts_are_encoded_as_those_of_a_file(policy, tmp_path):
  path = tmp_path / 'prompts.jsonl'
  path.write_text('{"prompt": "one"}\n{"prompt": "two "}\n')
  config = commands.config_lib.load(
    commands.EXPERIMENT, [('sample.prompts', str(path))]
  )
  ids = datasets.read_prompts(config, policy.tokenizer)
  scores = policy.score(['one', 'two '], ['x', 'y'])
  assert [x.tolist() for x in ids] == [x.tolist() for x in scores.prompts]
