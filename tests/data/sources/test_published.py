"""Names of public sets, and files that are missing."""

import pytest
from published_files import refused


@pytest.mark.parametrize(
  'name,parts',
  [
    ('tfds:', ['no data set named']),
    ('tfds:hh:train', ["did you mean 'hh_rlhf'?"]),
    ('tfds:imbd_reviews:train', ["did you mean 'imdb_reviews'?"]),
    ('tfds:hh_rlhf/harmles:test', ["did you mean 'harmless-base'?"]),
    ('tfds:shp/askvet:tarin', ["did you mean 'train'?", 'validation']),
    ('tfds:hh_rlhf', ['no split of hh_rlhf/all named', 'train, test']),
    (
      'tfds:hh_rlhf:train',
      ['hh_rlhf/harmless-base/train.jsonl.gz and 3 more not found', 'curl'],
    ),
    (
      'tfds:ultrafeedback_binarized:train_prefs',
      ['data/train_prefs-00000-of-00001.parquet not found', 'curl -L'],
    ),
  ],
)
def test_wrong_names_and_missing_files(tmp_path, name, parts):
  message = refused(tmp_path, name)
  assert message.startswith(f'{name}: ')
  for part in parts:
    assert part in message
  assert not (tmp_path / 'tfds').exists()
