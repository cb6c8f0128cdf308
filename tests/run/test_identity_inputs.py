"""identity: what a run was given changed between two starts.

Labels and weights of the same texts, tokenizers, model configs, references: all
of them are refused by name.
"""

import json
import os
import shutil
import sys

import pytest
import small_models
import trials
from safetensors import numpy as safetensors

ROWS = 24


def write(path, column='', change=lambda i: 1.0, prompt='p', rows=ROWS):
  """Pairs with all judgements that a row can hold; one of them changed."""
  lines = []
  for i in range(rows):
    row = {'prompt': f'{prompt}{i}', 'chosen': f'yes {i}', 'rejected': 'no'}
    row |= {'weight': 1.0, 'margin': 1.0}
    row |= {'score_chosen': 2.0, 'score_rejected': 1.0}
    lines.append(json.dumps(row | ({column: change(i)} if column else {})))
  path.write_text('\n'.join(lines) + '\n')


@pytest.fixture(scope='module')
def judged(tmp_path_factory):
  """A run on two files of pairs, with a held-out file."""
  folder = tmp_path_factory.mktemp('judged')
  for name in ('train', 'more', 'held_out'):
    write(
      folder / f'{name}.jsonl', prompt=name, rows=8 if name[0] == 'h' else 24
    )
  flags = (
    f'--config.data.train={folder}/train.jsonl,{folder}/more.jsonl',
    f'--config.data.eval={folder}/held_out.jsonl',
  )
  return trials.Trial(folder / 'run', flags).begin()


@pytest.mark.parametrize(
  'column', ['weight', 'margin', 'score_chosen', 'score_rejected']
)
@pytest.mark.parametrize('name', ['train', 'more', 'held_out'])
def test_another_judgement_of_the_same_texts_is_refused(
  judged, tmp_path, name, column
):
  path = judged.run.parent / f'{name}.jsonl'
  rows = len(path.read_text().splitlines())
  first = json.loads(path.read_text().split('\n')[0])[column]
  with trials.put_back(path):
    write(path, column, lambda i: first + (i == 3) / 2, name, rows)
    error = judged.copy(tmp_path / 'run').refused()
  key = 'data.eval' if name == 'held_out' else 'data.train'
  assert error.startswith(f'config.{key}: ')
  assert 'other labels, weights, margins or scores' in error


def reverse(path):
  path.write_text(''.join(path.read_text().splitlines(True)[::-1]))


def same_size_and_time(path):
  status = path.stat()
  path.write_text(path.read_text().replace('yes 7', 'yes 8'))
  os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize('change', [reverse, same_size_and_time])
@pytest.mark.parametrize('with_env', [True, False])
def test_other_records_are_refused(judged, tmp_path, change, with_env):
  path, run = judged.run.parent / 'more.jsonl', judged.copy(tmp_path / 'run')
  with trials.put_back(path):
    change(path)
    if not with_env:
      (run.run / 'env.json').unlink()  # the checkpoint knows too
    assert run.refused().startswith('config.data.train: ')


def test_columns_that_nothing_reads_are_harmless(judged, tmp_path):
  path = judged.run.parent / 'more.jsonl'
  with trials.put_back(path):
    write(path, 'source', str, 'more')
    judged.copy(tmp_path / 'run', at=2).goes_on()


def test_flipped_labels_are_refused(tmp_path):
  path = tmp_path / 'labels.jsonl'
  row = '{"prompt": "p%d", "completion": "yes %d", "label": %s}\n'

  def write_labels(first):
    words = ('true', 'false') if first else ('false', 'true')
    path.write_text(''.join(row % (i, i, words[i % 2]) for i in range(ROWS)))

  write_labels(True)
  flags = (f'--config.data.train={path}', '--config.data.eval_pairs=4')
  flags += ('--config.loss.terms.sigmoid=0', '--config.loss.terms.kto=1')
  run = trials.Trial(tmp_path / 'run', flags).begin()
  (run.run / 'DONE').unlink()
  write_labels(False)
  assert 'other labels, weights' in run.refused()
  write_labels(True)
  run.goes_on()


@pytest.fixture(scope='module')
def spoken(tmp_path_factory):
  """A run on chats, with a tokenizer in a folder."""
  sys.path.insert(0, os.path.join(os.path.dirname(__file__), '../data/text'))
  import toy_tokenizers as toy

  folder = tmp_path_factory.mktemp('spoken')
  made = toy.put_before(toy.byte_level(merges=[('a', 'b')]), '<s>')
  toy.save(
    folder / 'tokens', made, toy.CHATML, eos_token='</s>', bos_token='<s>'
  )
  answers = [[{'role': 'assistant', 'content': word}] for word in ('yes', 'no')]
  rows = (
    {
      'prompt': [{'role': 'user', 'content': f'hello {i}'}],
      'chosen': answers[0],
      'rejected': answers[1],
    }
    for i in range(ROWS)
  )
  (folder / 'chats.jsonl').write_text(
    ''.join(f'{json.dumps(row)}\n' for row in rows)
  )
  flags = (
    f'--config.data.train={folder}/chats.jsonl',
    f'--config.tokenizer={folder}/tokens',
    *('--config.data.eval_pairs=4', '--config.data.row_length=512'),
    *('--config.data.max_length=256', '--config.train.num_steps=1'),
  )
  return trials.Trial(folder / 'run', flags).begin()


TOKEN = {
  **{'id': 300, 'content': '<new>', 'single_word': False, 'lstrip': False},
  **{'rstrip': False, 'normalized': False, 'special': True},
}
TOKENIZERS = {
  'merges': ('tokenizer.json', lambda v: v['model'].update(merges=[])),
  'added': ('tokenizer.json', lambda v: v['added_tokens'].append(TOKEN)),
  'strip': (
    'tokenizer.json',
    lambda v: v['added_tokens'][0].update(lstrip=True),
  ),
  'begin': ('tokenizer.json', lambda v: v.update(post_processor=None)),
  'eos': ('tokenizer_config.json', lambda v: v.update(eos_token='<s>')),
  'template': (
    'tokenizer_config.json',
    lambda v: v.update(chat_template='{# x #}' + v['chat_template']),
  ),
  'stops': ('generation_config.json', lambda v: v.update(eos_token_id=[5])),
}


@pytest.mark.parametrize('kind', TOKENIZERS)
def test_another_tokenizer_is_refused(spoken, tmp_path, kind):
  name, change = TOKENIZERS[kind]
  path = spoken.run.parent / 'tokens' / name
  with trials.put_back(path):
    if not path.exists():
      path.write_text('{}')
    trials.edit(path, change)
    error = spoken.copy(tmp_path / 'run').refused()
  assert error.startswith('config.tokenizer: ') and 'another tokenizer' in error


@pytest.fixture(scope='module')
def loaded(tmp_path_factory):
  """A run from a folder of weights, with a reference in another one."""
  folder = tmp_path_factory.mktemp('loaded')
  flags = small_models.write(folder / 'model')
  shutil.copytree(folder / 'model', folder / 'reference')
  flags += [f'--config.reference.init_from={folder}/reference']
  return trials.Trial(folder / 'run', (*flags,)).begin()


CONFIGS = {
  'rope': ('reference', trials.turn, 'reference.init_from'),
  'eps': (
    'reference',
    lambda v: v.update(rms_norm_eps=1e-3),
    'reference.init_from',
  ),
  'own eps': ('model', lambda v: v.update(rms_norm_eps=1e-3), 'model'),
}


@pytest.mark.parametrize('kind', CONFIGS)
def test_another_config_of_weights_is_refused(loaded, tmp_path, kind):
  name, change, key = CONFIGS[kind]
  path = loaded.run.parent / name / 'config.json'
  with trials.put_back(path):
    trials.edit(path, change)
    error = loaded.copy(tmp_path / 'run').refused()
    assert error.startswith(f'config.{key}: ')
    if name == 'reference':
      # Nor does a first start take a reference for what it is not.
      new = trials.Trial(tmp_path / 'new', loaded.flags)
      assert 'not the policy' in new.refused()
      assert not new.run.exists()


def test_weights_in_another_form_count_by_their_numbers(loaded, tmp_path):
  path = loaded.run.parent / 'model' / 'model.safetensors'
  weights = safetensors.load_file(path)
  with trials.put_back(path):
    # The same numbers, written in another order.
    safetensors.save_file(dict(reversed(weights.items())), path)
    loaded.copy(tmp_path / 'same', at=2).goes_on()
    halves = {name: x.astype('float16') for name, x in weights.items()}
    safetensors.save_file(halves, path)
    error = loaded.copy(tmp_path / 'other').refused()
  assert error.startswith('config.model.init_from: ')
