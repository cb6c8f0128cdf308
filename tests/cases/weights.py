"""Cases of models: what is loaded, sampled and exported."""

import contextlib
import io
import json
import math
import pathlib
import shutil

import numpy as np
import small_models
import tokenizers
from cases.case import Case

from dpo_jax import main as main_lib
from dpo_jax.data.text import tokenizer as tokenizer_lib

ROOT = pathlib.Path(__file__).resolve().parents[2]
CONFIG = f'--config={ROOT}/experiments/quickstart.py:stage=dpo,runlocal'
MESH = '--config.mesh.data=-1'
LONG, SHORT = ([30] * 40 + [100] * 9), [30] * 40
EOS = 'eos_token_id'


def run(*words) -> tuple[int, str, str]:
  """Exit code, stdout and stderr of a command."""
  out, err = (io.TextIOWrapper(io.BytesIO(), 'utf-8') for _ in range(2))
  with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
    code = main_lib.main([CONFIG, *map(str, words)])
  texts = []
  for stream in (out, err):
    stream.flush()
    texts.append(stream.buffer.getvalue().decode())
  return code, *texts


def answer(folder, *words) -> str:
  """'exit N', and the place and the problem of a refusal."""
  code, _, err = run(f'--workdir={folder}/w', *words)
  problem = err.strip().partition('; fix: ')[0].replace(f'{folder}/', '')
  return f'exit {code}: {problem}' if code else 'exit 0'


def write_pairs(path, lengths) -> str:
  rows = [
    # BOS, 4 + n bytes, EOS.
    {'prompt': f'p{i:02d}:', 'chosen': 'a' * (n - 6), 'rejected': 'no'}
    for i, n in enumerate(lengths)
  ]
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return f'--config.data.train={path}'


def write_prompts(folder) -> str:
  (folder / 'p.jsonl').write_text('{"prompt": "a"}\n{"prompt": "bc"}\n')
  return f'--config.sample.prompts={folder}/p.jsonl'


# Sampling.


def highest_id(*more):
  """Whether every drawn id of a model of 400 rows is one of 259 tokens."""

  def ours(folder):
    words = small_models.write(folder / 'm', vocab_size=400)
    words += ['--config.model.allow_larger_vocab', write_prompts(folder)]
    words += ['--config.sample.num_samples=4', *more]
    words += ['--mode=sample', '--config.sample.max_new_tokens=16']
    assert run(f'--workdir={folder}/w', *words)[0] == 0
    (path,) = (folder / 'w/samples').iterdir()
    rows = map(json.loads, path.read_text().splitlines())
    ids = [i for row in rows for i in row['token_ids']]
    return f'{sum(i >= 259 for i in ids)} of {len(ids) // 50 * 50}+ are none'

  return ours


def sampled_twice(folder):
  words = [*small_models.write(folder / 'm'), write_prompts(folder)]
  words += ['--mode=sample', '--config.sample.max_new_tokens=4']
  for seed in (0, 1, 0):
    more = f'--config.sample.seed={seed}'
    assert run(f'--workdir={folder}/w', *words, more)[0] == 0
  rows = [
    json.loads(line)
    for path in (folder / 'w/samples').iterdir()
    for line in path.read_text().splitlines()
  ]
  gap = max(abs(row['reference_logp'] - row['model_logp']) for row in rows)
  count = len(list((folder / 'w/samples').iterdir()))
  return f'{count} files, reference_logp = model_logp: {gap < 1e-4}'


# Positions.


def texts(kind, lengths, mode='train', *more):
  def ours(folder):
    words = small_models.write(folder / 'm', kind)
    data = write_pairs(folder / 'd.jsonl', lengths)
    length = '--config.data.max_length=128'
    return answer(folder, *words, data, length, f'--mode={mode}', *more)

  return ours


def warned(kind, lengths):
  def ours(folder):
    words = small_models.write(folder / 'm', kind)
    data = write_pairs(folder / 'd.jsonl', lengths)
    words += [data, '--config.data.max_length=128', '--mode=plan']
    code, out, _ = run(*words)
    lines = [x for x in out.splitlines() if 'max_position_embeddings' in x]
    return f'exit {code}, {len(lines)} lines'

  return ours


# Export.


def write_model(folder, eos='</s>', ids=1, **settings):
  """A model with a tokenizer whose ids the configs contradict."""
  special = ['<pad>', '<s>', '</s>', '<end>']
  vocab = [*special, *(chr(c) for c in range(32, 127))]
  small_models.write(folder, vocab_size=len(vocab))
  vocab = {text: i for i, text in enumerate(vocab)}
  made = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, []))
  made.pre_tokenizer = tokenizers.pre_tokenizers.Split('', 'isolated')
  made.add_special_tokens(special)
  made.save(str(folder / 'tokenizer.json'))
  settings = {'bos_token': '<s>', 'eos_token': eos} | settings
  (folder / 'tokenizer_config.json').write_text(json.dumps(settings))
  for name in ('config.json', 'generation_config.json'):
    path = folder / name
    config = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(config | {EOS: ids}))
  return [
    '--config.model.preset=',
    f'--config.model.init_from={folder}',
    '--config.tokenizer=',
  ]


def exported(*more, **values):
  """The stops of an exported model's two configs, and of its tokenizer."""

  def ours(folder):
    words = write_model(folder / 'm', **values)
    words += ['--mode=export', f'--export_to={folder}/x', *more]
    words += ['--config.data.train=gone.jsonl']
    assert run(f'--workdir={folder}/w', *words)[0] == 0
    names = ('config.json', 'generation_config.json')
    stops = [
      json.loads((folder / 'x' / name).read_text())[EOS] for name in names
    ]
    tokenizer = tokenizer_lib.load(f'{folder}/x')
    return f'{stops[0]}, {stops[1]}; sampling {sorted(tokenizer.stop_ids)}'

  return ours


def exported_template(by_name):
  def ours(folder):
    words = write_model(folder / 'm', chat_template='own')
    (folder / 'm/additional_chat_templates').mkdir()
    named = folder / 'm/additional_chat_templates/other.jinja'
    named.write_text('{{ mood }} other')
    choice = 'other' if by_name else named
    words += [f'--config.data.chat_template={choice}']
    words += ['--config.data.template_args={"mood": "x"}']
    words += ['--mode=export', f'--export_to={folder}/x']
    assert run(f'--workdir={folder}/w', *words)[0] == 0
    templates = tokenizer_lib.load(f'{folder}/x').chat_templates
    text = templates.pop('default').replace('\n', ' / ')
    return f'{text}; {len(templates)} others'

  return ours


# Adapters, rows, weights.


def as_model(kind, *more):
  """The loss of an adapter's run or folder as a model: that of the adapter."""

  def ours(folder):
    # Trained on random weights, or on those of a folder.
    words = ['--config.tokenizer=byte', '--config.adapter.rank=2', *more]
    if kind != 'run on random weights':
      words += small_models.write(folder / 'm')
    words.append('--config.adapter.init=a_zero')
    trained = [*words, '--config.optim.learning_rate=0.05']
    assert run(f'--workdir={folder}/a', *trained)[0] == 0
    source = folder / 'a'
    if kind == 'PEFT folder':
      source = folder / 'p'
      trained += ['--config.adapter.export=peft', '--mode=export']
      words = [f'--workdir={folder}/a', f'--export_to={source}']
      assert run(*trained, *words)[0] == 0
    words = [f'--config.model.init_from={source}', '--config.model.preset=']
    words += ['--config.tokenizer=byte', f'--workdir={folder}/b']
    assert run(*words, '--mode=evaluate')[0] == 0
    values = [
      np.load(path)['policy_chosen']
      for path in (
        folder / 'a/per_example/eval_2.npz',
        folder / 'b/per_example/evaluate.npz',
      )
    ]
    first = np.load(folder / 'a/per_example/eval_0.npz')['policy_chosen']
    assert np.abs(first - values[0]).max() > 0.05
    gap = np.abs(values[0] - values[1]).max()
    return f'equal scores: {gap < 1e-3}'

  return ours


def lost_adapter(base):
  def ours(folder):
    path = folder / 'p'
    path.mkdir()
    config = {'peft_type': 'LORA', 'base_model_name_or_path': base}
    (path / 'adapter_config.json').write_text(json.dumps(config))
    words = ['--config.model.preset=', '--config.model.init_from=p']
    code, _, err = run(f'--workdir={folder}/w', *words, '--config.tokenizer=')
    keys = ('model.init_from', '--config.adapter.init_from=p')
    return f'exit {code}, names the keys: {all(key in err for key in keys)}'

  return ours


def added_rows(*more):
  def ours(folder):
    words = write_model(folder / 'm', ids=2)
    shutil.copytree(folder / 'm', folder / 't')
    made = tokenizers.Tokenizer.from_file(f'{folder}/t/tokenizer.json')
    made.add_tokens(['more', 'tokens'])
    made.save(f'{folder}/t/tokenizer.json')
    words[2] = f'--config.tokenizer={folder}/t'
    words += [*more, '--mode=export', f'--export_to={folder}/x']
    code, _, err = run(f'--workdir={folder}/w', *words)
    if code:
      return f'exit {code}, names the key: {"model.add_rows=True" in err}'
    config = json.loads((folder / 'x/config.json').read_text())
    return f'{config["vocab_size"]} rows'

  return ours


def spoilt(name, value, mode='evaluate'):
  def ours(folder):
    words = small_models.write(folder / 'm', spoil=(name, value))
    words += [f'--export_to={folder}/x'] if mode == 'export' else []
    return answer(folder, *words, f'--mode={mode}')

  return ours


TABLE = "longer than the model's table of 64 positions; the longest has "
IDS, STOPS, PLACES = 'sampled ids', 'exported stops', 'position table'
MODEL, ROWS, NAN = 'adapter as model', 'added tokens', 'weights not finite'
CASES = [
  Case(IDS, '400 rows, 259 tokens', '0 of 100+ are none', highest_id()),
  Case(
    IDS,
    'top_k above the tokens',
    '0 of 100+ are none',
    highest_id('--config.sample.top_k=390'),
  ),
  Case(
    IDS,
    'top_p of nearly all',
    '0 of 100+ are none',
    highest_id('--config.sample.top_p=0.999'),
  ),
  Case(
    'samples',
    'three commands, two seeds',
    '2 files, reference_logp = model_logp: True',
    sampled_twice,
  ),
  Case(
    PLACES,
    'texts longer than a learned table',
    f'exit 2: config.data.train: 4 of 66 texts of data.train are {TABLE}100 '
    'tokens',
    texts('gpt2', LONG),
  ),
  Case(
    PLACES,
    'the same by --mode=plan',
    f'exit 2: config.data.train: 4 of 66 texts of data.train are {TABLE}100 '
    'tokens',
    texts('gpt2', LONG, 'plan'),
  ),
  Case(
    PLACES,
    'samples that would pass its end',
    'exit 2: config.sample.max_new_tokens: 60 after a prompt of 5 tokens is '
    'more than the 64 positions of the model',
    texts(
      'gpt2',
      SHORT,
      'train',
      '--config.eval.num_samples=1',
      '--config.sample.max_new_tokens=60',
    ),
  ),
  Case(PLACES, 'rotary: a line', 'exit 0, 2 lines', warned('llama', LONG)),
  Case(
    PLACES,
    'rotary, within: no line',
    'exit 0, 0 lines',
    warned('llama', SHORT),
  ),
  Case(
    STOPS,
    'tokenizer 2, configs 1',
    '[2, 1], [2, 1]; sampling [1, 2]',
    exported(),
  ),
  Case(
    STOPS,
    'tokenizer 3, configs 2',
    '[3, 2], [3, 2]; sampling [2, 3]',
    exported(eos='<end>', ids=2),
  ),
  Case(
    STOPS,
    'sample.stop=<end>',
    '[2, 3], [2, 3]; sampling [2, 3]',
    exported('--config.sample.stop=<end>', ids=2),
  ),
  Case(
    STOPS,
    'one stop',
    '2, 2; sampling [2]',
    exported(ids=[2]),
  ),
  *(
    Case(
      'exported template',
      f'data.chat_template {how} and an argument',
      "{%- if mood is not defined %}{%- set mood = 'x' %}{%- endif %} / "
      '{{ mood }} other; 0 others',
      exported_template(how == 'by name'),
    )
    for how in ('by name', 'as a file')
  ),
  *(
    Case(MODEL, kind, 'equal scores: True', as_model(kind))
    for kind in ('PEFT folder', 'run', 'run on random weights')
  ),
  *(
    Case(MODEL, words, 'exit 2, names the keys: True', lost_adapter(base))
    for words, base in (
      ('PEFT folder without a base', None),
      ('PEFT folder, base elsewhere', 'org/name'),
      ('PEFT folder on itself', 'p'),
    )
  ),
  Case(ROWS, 'refused', 'exit 2, names the key: True', added_rows()),
  Case(
    ROWS,
    'model.add_rows',
    '101 rows',
    added_rows('--config.model.add_rows=True'),
  ),
  Case(
    ROWS,
    'model.add_rows under an adapter',
    '101 rows',
    added_rows('--config.model.add_rows=True', '--config.adapter.rank=2'),
  ),
  *(
    Case(
      NAN,
      f'{value} in {name}, {mode}',
      f'exit 2: m: model.{tensor} holds numbers that are not finite: the '
      'weights that were given are damaged, or overflowed where they were made',
      spoilt(name, value, mode),
    )
    for name, tensor, value, mode in (
      (
        'layers/mlp/up/kernel',
        'layers.1.mlp.up_proj.weight',
        math.nan,
        'evaluate',
      ),
      ('embed/embedding', 'embed_tokens.weight', math.inf, 'evaluate'),
      ('final_norm/scale', 'norm.weight', math.nan, 'export'),
    )
  ),
]
