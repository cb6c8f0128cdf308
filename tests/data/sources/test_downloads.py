"""Downloaded files: paths, complete splits, digests."""

from published_files import put_hh

from dpo_jax.data.sources import downloads, published


def test_only_complete_splits_are_given(tmp_path):
  path = put_hh(tmp_path, 'test')
  manual = str(tmp_path / 'manual')
  asked = published.parse_name('hh_rlhf/harmless-base:test', where='x')
  one = downloads.find(asked, manual)
  assert one.paths == {'harmless-base/test.jsonl.gz': str(path)}
  assert one.splits == {'test': ('harmless-base/test.jsonl.gz',)}
  # The config 'all' has four files per split, and one exists.
  every = downloads.find(
    published.parse_name('hh_rlhf:test', where='x'), manual
  )
  assert len(every.paths) == 1 and every.splits == {}


def test_the_digest_of_a_folder_follows_names_and_sizes(tmp_path):
  (tmp_path / 'b').mkdir()
  (tmp_path / 'b' / 'x').write_bytes(b'12')
  digests = [downloads.digest(str(tmp_path))]
  (tmp_path / 'b' / 'x').write_bytes(b'123')
  digests.append(downloads.digest(str(tmp_path)))
  (tmp_path / 'b' / 'x').rename(tmp_path / 'b' / 'y')
  digests.append(downloads.digest(str(tmp_path)))
  assert len(set(digests)) == 3
