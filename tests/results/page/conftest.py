"""Runs whose held-out records are in a token cache, so that they have texts."""

import json
import pathlib

import numpy as np
import pytest

from dpo_jax.data.text import encoders
from dpo_jax.storage import token_store
from dpo_jax.types import Comparison, EncodedRecord

# Answers that would run, close an element, or turn the text around.
HOSTILE = (
  '<script>window.harm = 1</script>',
  '</script><img src=x onerror="window.harm = 1">',
  '<!-- <script> --> ]]> <svg onload="window.harm = 1">',
  '\u2028window.harm = 1\u2029',
  '\u202egnirts desrever\u202c, \u2066isolated',
  '\\"\'`${window.harm = 1}`; @SCRIPT@ @DATA@ &lt;b&gt;',
  '\x00\x1b[31mred\x07',
  '__proto__',
)


def _record(number: int, prompt: str, chosen: str, rejected: str):
  """A record of the byte tokenizer; the first rejected token is untrained."""
  encode = encoders.ByteTokenizer().encode
  sides = [np.array(encode(text), np.int32) for text in (rejected, chosen)]
  masks = [np.ones(len(side), bool) for side in sides]
  masks[0][:1] = False
  return EncodedRecord(
    prompt=np.array(encode(prompt), np.int32),
    completions=tuple(sides),
    comparisons=(Comparison(winner=1, loser=0),),
    uid=f'{number:016x}',
    trained=tuple(masks),
  )


@pytest.fixture
def make_told_run(make_scored_run, tmp_path):
  """make_told_run(name, changes, texts=[(prompt, chosen, rejected)], ...)."""

  def make(name, changes=(), *, texts, margins, cached=True, **more):
    records = [_record(i, *three) for i, three in enumerate(texts)]
    changes = {'tokenizer': 'byte', **dict(changes)}
    path = make_scored_run(name, changes, margins=margins, **more)
    _set_counts(path, records)
    folder = path.parent / 'cache' / 'tokens' / 'of-all'
    store = token_store.write(folder if cached else tmp_path / 'x', records, {})
    env = {
      'git_commit': '0123456789abcdef',
      'command': ['main.py', '--config=a'],
      'fingerprints': {
        'tokenizer': encoders.ByteTokenizer.fingerprint,
        'eval_data': store.digest,
      },
    }
    (path / 'env.json').write_text(json.dumps(env))
    return path

  return make


def _set_counts(path: pathlib.Path, records) -> None:
  """The numbers of trained tokens, as the run would have saved them."""
  file = path / 'per_example' / 'eval_10.npz'
  arrays = dict(np.load(file))
  for name, side in (('chosen_tokens', 1), ('rejected_tokens', 0)):
    arrays[name] = np.array([r.trained[side].sum() for r in records], float)
  np.savez(file, **arrays)


@pytest.fixture
def hostile_runs(make_told_run, tmp_path):
  """A folder with two seeds whose texts and samples are `HOSTILE`."""
  texts = [(text, text, text[::-1]) for text in HOSTILE]
  margins = np.linspace(-2, 1, len(texts))
  for seed in (0, 1):
    name = f'runs/javascript:harm,{seed}<b>'
    path = make_told_run(name, {'seed': seed}, texts=texts, margins=margins)
    (path / 'samples').mkdir()
    rows = [
      {
        'prompt': text,
        'completion': f'{text} {seed}\ud800',
        'prompt_id': f'id {text}',
        'seed': 0,
        'num_tokens': 3,
        'model_logp': -1.5,
        'stop_reason': text,
      }
      for text in HOSTILE
    ]
    lines = ''.join(f'{json.dumps(row)}\n' for row in rows)
    (path / 'samples' / 'step_10_t1.jsonl').write_text(lines + '{torn')
  return tmp_path / 'runs'
