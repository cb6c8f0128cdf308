"""Cases of the face: hints, a run's evaluations, what a reader can see."""

import atexit
import contextlib
import functools
import io
import json
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile

import numpy as np
from cases.case import Case

import dpo_jax
from dpo_jax import main as main_lib
from dpo_jax.results import __main__ as results_main

ROOT = pathlib.Path(__file__).resolve().parents[2]
EXPERIMENTS = ROOT / 'experiments'
LOCAL = f'--config={EXPERIMENTS}/quickstart.py:stage=dpo,runlocal'


def command(*words: str) -> tuple[int, str, str]:
  """Exit code, stdout and stderr of a command."""
  # Real files' interface: the commands set how stdout encodes.
  out, err = (io.TextIOWrapper(io.BytesIO(), 'utf-8') for _ in range(2))
  with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
    code = main_lib.main(words)
  texts = []
  for stream in (out, err):
    stream.flush()
    texts.append(stream.buffer.getvalue().decode())
  return code, *texts


def refused(experiment: str, *words: str):
  """The fix of a refused command, up to a list of all names."""

  def ours(folder: pathlib.Path) -> str:
    code, _, err = command(
      f'--config={EXPERIMENTS}/{experiment}', f'--workdir={folder}/w', *words
    )
    assert not list(folder.iterdir()) and err.count('\n') == 1
    fix = err.strip().partition('; fix: ')[2].partition('; losses are ')[0]
    return f'exit {code}: {fix}'

  return ours


@functools.cache
def trained() -> pathlib.Path:
  """A run of two updates."""
  folder = pathlib.Path(tempfile.mkdtemp())
  atexit.register(shutil.rmtree, folder, ignore_errors=True)
  assert command(LOCAL, f'--workdir={folder}/run')[0] == 0
  return folder / 'run'


def copied(folder: pathlib.Path) -> pathlib.Path:
  return pathlib.Path(shutil.copytree(trained(), folder / 'run'))


def pairs(path: pathlib.Path, answer: str, count: int = 6) -> pathlib.Path:
  path.parent.mkdir(exist_ok=True)
  rows = [
    {'prompt': f'p{i} ', 'chosen': answer, 'rejected': 'no'}
    for i in range(count)
  ]
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return path


def evaluated(*names: str):
  """What two evaluations leave in a run."""

  def ours(folder: pathlib.Path) -> str:
    run = copied(folder)
    own = (run / 'per_example/eval_2.npz').read_bytes()
    for i, name in enumerate(names):
      file = pairs(folder / name, 'yes' * (i + 1))
      words = [LOCAL, f'--workdir={run}', '--mode=evaluate']
      assert command(*words, f'--config.data.eval={file}')[0] == 0
    assert (run / 'per_example/eval_2.npz').read_bytes() == own
    out = io.TextIOWrapper(io.BytesIO(), 'utf-8')
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
      assert results_main.main([str(run), f'--out={folder}/out']) == 0
    text = (folder / 'out/results.md').read_text()
    lengths = [
      dpo_jax.read_run(run).evaluations[name]['metrics']['lengths/chosen']
      for name in sorted(dpo_jax.read_run(run).evaluations)
    ]
    return f'chosen lengths {sorted(lengths)}, tables {text.count("## ")}'

  return ours


def scored(folder: pathlib.Path) -> str:
  del folder
  values = dpo_jax.read_run(trained()).examples['eval_2']
  policy = dpo_jax.open_policy(trained())
  out = command(
    LOCAL,
    f'--workdir={trained()}',
    '--mode=show',
    f'--record={values["uid"][0]}',
  )[1]
  blocks = re.findall(r'^  \| (.*)$', out, re.MULTILINE)
  prompt, *answers = (
    re.sub(r'\[\[|\]\]|<\|bos\|>|<\|eos\|>', '', text) for text in blocks
  )
  first = re.search('completion 0: .* chosen', out) is not None
  saved = values['policy_chosen'][0], values['policy_rejected'][0]
  logps = policy.score(prompt, answers[:: 1 if first else -1]).logps
  return str(bool(np.allclose(logps, saved, atol=1e-3)))


def without_jax(name: str):
  def ours(folder: pathlib.Path) -> str:
    del folder
    code = f'import sys, dpo_jax; dpo_jax.{name}; print("jax" in sys.modules)'
    return subprocess.run(
      [sys.executable, '-c', code],
      cwd=ROOT,
      capture_output=True,
      text=True,
      check=True,
    ).stdout.strip()

  return ours


def shown(template: str, messages: list[tuple[str, str]], *words: str):
  """The completion of a conversation, as --mode=show prints it."""

  def ours(folder: pathlib.Path) -> str:
    (folder / 't.jinja').write_text(template)
    turns = [{'role': role, 'content': text} for role, text in messages]
    rows = [{'messages': turns}, {'messages': [turns[0], turns[1]]}]
    (folder / 'chat.jsonl').write_text(
      ''.join(json.dumps(row) + '\n' for row in rows)
    )
    pairs(folder / 'held_out.jsonl', 'yes')
    code, out, err = command(
      f'--config={EXPERIMENTS}/quickstart.py:stage=sft,runlocal',
      '--mode=show',
      f'--config.data.train={folder}/chat.jsonl',
      f'--config.data.eval={folder}/held_out.jsonl',
      f'--config.data.chat_template={folder}/t.jinja',
      '--config.train.batch_size=1',
      '--num_records=1',
      *words,
    )
    assert code == 0, err
    completion = out.split('\n\n')[1].split('\n  | ')[-1]
    return completion.partition('\nsource: ')[0]

  return ours


def found(field: str, length: int):
  """Whether --record finds a record by the beginning of an id."""

  def ours(folder: pathlib.Path) -> str:
    del folder
    values = dpo_jax.read_run(trained()).examples['eval_2']
    record = str(values[field][3])[:length]
    out = command(
      LOCAL, f'--workdir={trained()}', '--mode=show', f'--record={record}'
    )[1]
    return re.search(r'eval record .* of [\d,]+', out)[0]

  return ours


def explained(*names: str):
  def ours(folder: pathlib.Path) -> str:
    del folder
    out = command(LOCAL, '--mode=show')[1]
    lines = [re.search(rf'^ +0  {n} +(.+)$', out, re.M)[1] for n in names]
    return '; '.join(lines)

  return ours


def cut(sizes: list[int], *words: str):
  """What experiments/your_pairs.py says of prompts of these lengths."""

  def ours(folder: pathlib.Path) -> str:
    rows = [
      {'prompt': 'p' * n + f'{i:04d}', 'chosen': 'yes', 'rejected': 'no'}
      for i, n in enumerate(sizes)
    ]
    file = folder / 'pairs.jsonl'
    file.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    out = command(
      f'--config={EXPERIMENTS}/your_pairs.py:data={file}', '--mode=show', *words
    )[1]
    said = re.search('data.max_length .* are held out', out)[0]
    count = re.search(r'(\d+)  truncated_prompts', out)[1]
    return f'{said}; truncated_prompts {count}'

  return ours


CHAT = (
  '{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}'
  '{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}'
)
TURNS = [
  ('user', 'Hi'),
  ('assistant', 'Yes?'),
  ('user', 'A'),
  ('assistant', 'B'),
]
NAMES = "another trainer's names"
EVALUATIONS = 'evaluation on another file'
SEEN = 'an encoded row, seen'
NOTEBOOK = 'four texts in a notebook'
YOURS = 'pairs of your own'

CASES = [
  Case(
    NAMES,
    '`loss.terms.dpo`',
    "exit 2: dpo is 'sigmoid' here",
    refused('quickstart.py:stage=dpo', '--config.loss.terms.dpo=1'),
  ),
  Case(
    NAMES,
    '`optim.lr`',
    'exit 2: optim.lr is config.optim.learning_rate here',
    refused('quickstart.py:stage=dpo', '--config.optim.lr=1'),
  ),
  Case(
    NAMES,
    '`lr`',
    'exit 2: lr is config.optim.learning_rate here',
    refused('quickstart.py:stage=dpo', '--config.lr=1'),
  ),
  Case(
    NAMES,
    'an experiment with `loss=dpo`',
    "exit 2: dpo is 'sigmoid' here",
    refused('stories_dpo.py:loss=dpo'),
  ),
  Case(
    NAMES,
    'an experiment with `loss=rpo`',
    'exit 2: rpo is a mix here: config.loss.terms.sigmoid=1, '
    'config.loss.terms.nll=1',
    refused('stories_dpo.py:loss=rpo'),
  ),
  Case(
    NAMES,
    'an experiment with `loss=cdpo`',
    'exit 2: cdpo is sigmoid with config.loss.label_smoothing=0.1 here',
    refused('stories_dpo.py:loss=cdpo'),
  ),
  Case(
    NAMES,
    '`gradient_accumulation_steps`',
    'exit 2: train.gradient_accumulation_steps is config.train.microbatches '
    'here',
    refused(
      'quickstart.py:stage=dpo', '--config.train.gradient_accumulation_steps=4'
    ),
  ),
  Case(
    NAMES,
    '`lora_r`',
    'exit 2: lora_r is config.adapter.rank here',
    refused('quickstart.py:stage=dpo', '--config.lora_r=8'),
  ),
  Case(
    EVALUATIONS,
    'two files, one after the other',
    'chosen lengths [4.0, 7.0], tables 2',
    evaluated('a.jsonl', 'b.jsonl'),
  ),
  Case(
    EVALUATIONS,
    'two files of one name in two folders',
    'chosen lengths [4.0, 7.0], tables 2',
    evaluated('x/test.jsonl', 'y/test.jsonl'),
  ),
  Case(
    EVALUATIONS,
    "a file named like the run's own evaluation",
    'chosen lengths [4.0], tables 1',
    evaluated('eval_2.jsonl'),
  ),
  Case(
    SEEN,
    'text and mask of all assistant turns',
    '[[Yes?<|eos|>]]<user>A<|eos|><assistant>[[B<|eos|>]]',
    shown(CHAT, TURNS, '--config.data.train_on=all_assistant'),
  ),
  Case(
    SEEN,
    'text and mask of the last turn',
    '[[B<|eos|>]]',
    shown(CHAT, TURNS),
  ),
  Case(
    SEEN,
    'an escape sequence in the data',
    '[[\\x1b[31mB<|eos|>]]',
    shown(CHAT, [('user', 'A'), ('assistant', '\x1b[31mB')]),
  ),
  Case(
    SEEN,
    'a record by its uid',
    'eval record 4 of 16',
    found('uid', 16),
  ),
  Case(
    SEEN,
    'a record by the beginning of its prompt id',
    'eval record 4 of 16',
    found('prompt_id', 10),
  ),
  Case(
    SEEN,
    '"boundary_merges", "trimmed_after_eos" explained',
    'records whose prompt and completion would share a token if they were '
    'tokenised together; completions whose template writes white space after '
    'EOS; it is left out',
    explained('boundary_merges', 'trimmed_after_eos'),
  ),
  Case(
    NOTEBOOK,
    'scores are those that the run saved',
    'True',
    scored,
  ),
  Case(
    NOTEBOOK,
    'jax after `import dpo_jax`',
    'False',
    without_jax('__doc__'),
  ),
  Case(
    NOTEBOOK,
    'jax after `dpo_jax.read_run`',
    'False',
    without_jax('read_run'),
  ),
  Case(
    YOURS,
    '4 of 100 prompts are far longer',
    'data.max_length 128 cuts 4 of 100 pairs (4.0%); 5 comparisons are held '
    'out; truncated_prompts 4',
    cut([40] * 90 + [100] * 6 + [1000] * 4),
  ),
  Case(
    YOURS,
    'all pairs are short',
    'data.max_length 32 cuts 0 of 40 pairs (0.0%); 2 comparisons are held out; '
    'truncated_prompts 0',
    cut([10] * 40),
  ),
  Case(
    YOURS,
    'lengths of every kind',
    'data.max_length 224 cuts 0 of 40 pairs (0.0%); 2 comparisons are held '
    'out; truncated_prompts 0',
    cut(list(range(5, 205, 5))),
  ),
]
