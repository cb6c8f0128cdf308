"""show: records as text, trained tokens marked; ids found; counts explained."""

import json
import re

import commands
import numpy as np
import pytest

from dpo_jax import main as main_lib
from dpo_jax.data.text import encoders
from dpo_jax.data.text import ledger as ledger_lib
from dpo_jax.run import show

TEMPLATE = (
  '{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}'
  '{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}'
)


def run(capsys, *arguments):
  assert main_lib.main([commands.CONFIG, '--mode=show', *arguments]) == 0
  return capsys.readouterr().out


def chat(tmp_path):
  """Arguments: SFT on all assistant turns of one conversation of two."""
  turns = [('user', 'Hi'), ('assistant', 'Yes?'), ('user', 'A\nB \x1b[31m')]
  turns.append(('assistant', 'C\nD [['))
  messages = [{'role': r, 'content': c} for r, c in turns]
  rows = [{'messages': messages}]
  rows += [
    {'messages': [{'role': 'user', 'content': f'{n}'}, messages[1]]}
    for n in range(30)
  ]
  (tmp_path / 'chat.jsonl').write_text(
    ''.join(json.dumps(row) + '\n' for row in rows)
  )
  (tmp_path / 'chat.jinja').write_text(TEMPLATE)
  return (
    f'--config.data.train={tmp_path}/chat.jsonl',
    f'--config.data.chat_template={tmp_path}/chat.jinja',
    '--config.data.train_on=all_assistant',
    '--config.stage=sft',
    '--config.loss.terms.sigmoid=0',
    '--config.loss.terms.nll=1',
    '--config.loss.beta=None',
    '--config.reference.mode=none',
    '--config.data.eval_pairs=1',
  )


def test_trained_tokens_are_in_brackets_and_nothing_is_lost(tmp_path, capsys):
  out = run(capsys, *chat(tmp_path), '--num_records=31')
  (text,) = (t for t in out.split('\n\n') if 'Yes?' in t and 'A\\n' in t)
  assert '  | <|bos|><user>Hi<|eos|><assistant>\n' in text
  assert (
    '  | [[Yes?<|eos|>]]<user>A\\n\n  | B \\x1b[31m<|eos|><assistant>'
    '[[C\\n\n  | D [[<|eos|>]]'
  ) in text
  assert '\x1b' not in out


def test_a_terminal_gets_colour_unless_it_wants_none(capsys, monkeypatch):
  monkeypatch.setattr('sys.stdout.isatty', lambda: True)
  assert '\x1b[32;4m' in run(capsys, '--num_records=1')
  monkeypatch.setenv('NO_COLOR', '1')
  assert '\x1b' not in run(capsys, '--num_records=1')


@pytest.mark.parametrize('count', [1, 4])
def test_as_many_records_as_asked_for(count, capsys):
  out = run(capsys, f'--num_records={count}')
  assert len(re.findall('^train record ', out, re.MULTILINE)) == count
  assert len(re.findall('^completion .*chosen over ', out, re.M)) == count


def test_every_count_has_its_sentence(tmp_path, capsys):
  out = run(capsys, *chat(tmp_path))
  for name, (problem, fix) in ledger_lib.REASONS.items():
    assert re.search(rf'^ +0  {name} +dropped: {re.escape(problem)}', out, re.M)
    assert fix in out
  for name, sentence in ledger_lib.COUNTERS.items():
    assert re.search(rf'^ +[\d,]+  {name} +{re.escape(sentence)}$', out, re.M)
  assert re.search(r'^ +31  chats ', out, re.M)
  assert re.search(r'^ +31  read +rows that were read$', out, re.M)
  for line in out.partition('train, counts:\n')[2].splitlines():
    assert len(line.split()) > 3, line


def test_a_record_of_per_example_is_found_again(tmp_path, capsys):
  workdir = f'--workdir={tmp_path}/run'
  assert main_lib.main([commands.CONFIG, workdir]) == 0
  with np.load(tmp_path / 'run/per_example/eval_2.npz') as arrays:
    uid, prompt = (arrays[k][3].decode() for k in ('uid', 'prompt_id'))
    tokens = int(arrays['chosen_tokens'][3])
  before = sorted((tmp_path / 'run').rglob('*'))
  for record in (uid, prompt, uid[:12].upper()):
    capsys.readouterr()
    out = run(capsys, workdir, f'--record={record}')
    assert f'eval record 4 of 16: uid {uid}, prompt_id {prompt}' in out
    assert f'{tokens} trained, chosen over' in out
    assert re.search(r'^source: synthetic\[\d+\]$', out, re.M)
    assert out.count(' record ') == 1
  assert sorted((tmp_path / 'run').rglob('*')) == before


def test_the_source_line_of_a_record_is_named(tmp_path, capsys):
  for name in ('a', 'b'):
    rows = (
      {'prompt': f'{name}{i % 9}', 'chosen': 'y', 'rejected': 'n'}
      for i in range(12)
    )
    text = ''.join(json.dumps(row) + '\n' for row in rows)
    (tmp_path / f'{name}.jsonl').write_text(text)
  sources = f'--config.data.train={tmp_path}/a.jsonl,{tmp_path}/b.jsonl'
  for flags in ((), ('--config.data.proportions=2,0.5',)):
    out = run(
      capsys,
      *(sources, '--config.data.eval_pairs=2', '--num_records=99', *flags),
    )
    places = {}
    for text in re.split('^train record', out, flags=re.M)[1:]:
      prompt = re.search(r'\n  \| \S*?([ab]\d)\n', text)[1]
      places[prompt] = re.search('^source: (.*)$', text, re.M)[1]
    assert len(places) > 8
    for prompt, place in places.items():
      line = int(prompt[1]) + 1
      path = f'{tmp_path}/{prompt[0]}.jsonl'
      # Of equal rows (10 to 12 repeat 1 to 3) the first that was taken.
      assert place in {f'{path}:{line}', f'{path}:{line + 9}'}


def test_an_id_of_no_record_is_refused(capsys):
  arguments = [commands.CONFIG, '--mode=show', '--record=xyz']
  assert main_lib.main(arguments) == 2
  err = capsys.readouterr().err
  assert (
    err.startswith("--record: 'xyz' begins no uid") and err.count('\n') == 1
  )


def test_marks_lie_on_the_text_of_their_tokens():
  tokenizer = encoders.ByteTokenizer()
  ids = tokenizer.encode('aé—b')  # letters of one, two and three bytes
  for start in range(len(ids)):
    mask = np.arange(len(ids)) >= start
    text = show.marked(tokenizer.decode, ids[:1], ids, mask, ('<', '>'))
    assert text.count('<') == 1 and text.endswith('>')
    if start in (0, 1, 3, 6):
      assert text.replace('<', '').replace('>', '') == 'aé—b'
  assert show.marked(tokenizer.decode, (), ids, None, ('<', '>')) == 'aé—b'
