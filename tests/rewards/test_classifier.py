"""classifier: scores are logits of a real model; refusals name the fix."""

import json
import pathlib
import shutil

import numpy as np
import pytest
import safetensors.numpy

from dpo_jax.data.text import tokenizer as tokenizer_lib
from dpo_jax.rewards import classifier, registry
from dpo_jax.types import InputError

# Rows of the head over the vocabulary that serve as labels: their scores are
# logits, of which the model's golden file has some.
LABELS = 376, 261


@pytest.fixture(scope='module')
def stories(shared):
  return shared / 'data/models/stories260K'


def write(folder, stories, labels, name=classifier.HEAD):
  """The model with other heads: `labels` are rows of its embedding."""
  folder.mkdir()
  for file in ('config.json', 'tokenizer.json', 'tokenizer_config.json'):
    shutil.copy(stories / file, folder)
  tensors = safetensors.numpy.load_file(stories / 'model.safetensors')
  table = tensors['model.embed_tokens.weight']
  tensors[name] = np.ascontiguousarray(table[list(labels)])
  safetensors.numpy.save_file(tensors, folder / 'model.safetensors')
  return f'classifier:{folder}'


def score(name, texts):
  answers = [registry.Answer('', '', text, 0) for text in texts]
  return registry.get(name).score(answers)


def test_scores_equal_the_golden_logits(tmp_path, stories):
  # golden.npz: an independent float64 forward of the same weights.
  golden = np.load(stories / 'golden.npz')
  tokenizer = tokenizer_lib.load(str(stories))
  texts, want = [], []
  for i in range(3):
    ids = golden[f'ids{i}'].tolist()
    for end in (len(ids), len(ids) - 3):
      texts.append(tokenizer.decode(ids[:end]))
      assert [1, *tokenizer.encode(texts[-1])] == ids[:end]
      want.append(golden[f'logits{i}'][end - 1])
  want = np.array(want, np.float64)
  one = write(tmp_path / 'one', stories, LABELS[:1])
  np.testing.assert_allclose(score(one, texts), want[:, LABELS[0]], atol=2e-4)
  two = write(tmp_path / 'two', stories, LABELS)
  np.testing.assert_allclose(
    score(two, texts), want[:, LABELS[1]] - want[:, LABELS[0]], atol=2e-4
  )
  # More texts than a batch, and longer ones: each has the score it had alone.
  many = texts * 7 + ['Once upon a time ' * 20]
  np.testing.assert_allclose(score(one, many)[:6], score(one, texts), atol=1e-5)


@pytest.mark.parametrize(
  'labels,name,words',
  [
    (LABELS, 'scores.weight', 'has no tensor score.weight'),
    ((1, 2, 3), classifier.HEAD, 'with one or two labels, of width 64'),
  ],
)
def test_another_head_is_refused(tmp_path, stories, labels, name, words):
  reward = write(tmp_path / 'folder', stories, labels, name)
  with pytest.raises(InputError) as error:
    registry.get(reward)
  assert words in str(error.value) and '\n' not in str(error.value)


def test_a_folder_that_is_no_model_is_refused(tmp_path):
  with pytest.raises(InputError, match='config.json'):
    registry.get(f'classifier:{tmp_path}')
  (tmp_path / 'config.json').write_text(json.dumps({'model_type': 'bert'}))
  with pytest.raises(InputError, match='bert'):
    registry.get(f'classifier:{pathlib.Path(tmp_path)}')
