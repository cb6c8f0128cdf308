"""An exported chat model in transformers: the same prompts, the same stops.

  PYTHONPATH=. python tests/run/exported_in_transformers.py PYTHON [UPDATES]

PYTHON is the interpreter of an environment with torch and transformers: this
project needs neither. Trains a tiny model on chats, exports it, samples 20
prompts at temperature 0, and lets transformers do the same from the exported
folder alone: `apply_chat_template` must give the same prompt, and `generate`
the same tokens up to the same stop. Prints one line; exit code 1 if they
differ.
"""

import json
import pathlib
import subprocess
import sys
import tempfile

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_NEW_TOKENS = 40
_WORDS = ('sun', 'sea', 'oak', 'fox')
# Runs in the other environment; imports nothing of this project.
_THEIRS = """
import json, sys, torch, transformers
folder, prompts = sys.argv[1], json.load(open(sys.argv[2]))
tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
model = transformers.AutoModelForCausalLM.from_pretrained(
  folder, dtype=torch.float32
)
out = []
for messages in prompts:
  ids = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, return_dict=False
  )
  drawn = model.generate(
    torch.tensor([ids]), do_sample=False, max_new_tokens=NEW
  )
  out.append([list(ids), drawn[0, len(ids):].tolist()])
print(json.dumps(out))
"""


def main(python: str, updates: int) -> int:
  """Trains, exports, samples, compares; returns the exit code."""
  sys.path.insert(0, str(_ROOT / 'tests/data/text'))
  import toy_tokenizers

  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    made = toy_tokenizers.byte_level(merges=[('a', 'b')])
    toy_tokenizers.save(
      folder / 'tokens', made, toy_tokenizers.CHATML, eos_token='</s>'
    )
    chats = [_chat(word, n) for word in _WORDS for n in range(1, 6)] * 8
    _write(folder / 'chats.jsonl', [{'messages': chat} for chat in chats])
    # Half of the prompts were trained on; the others are new.
    prompts = [
      [*_chat(word, n)[:-1]] for word in _WORDS for n in (1, 2, 3, 7, 9)
    ]
    _write(folder / 'prompts.jsonl', [{'prompt': prompt} for prompt in prompts])
    ours = _ours(folder, updates)
    (folder / 'prompts.json').write_text(json.dumps(prompts))
    theirs = json.loads(
      subprocess.run(
        [
          *(python, '-c', _THEIRS.replace('NEW', str(_NEW_TOKENS))),
          *(str(folder / 'exported'), str(folder / 'prompts.json')),
        ],
        stdout=subprocess.PIPE,
        check=True,
      ).stdout
    )
  same_prompts = sum(a[0] == b[0] for a, b in zip(ours, theirs))
  same_tokens = sum(a[1] == b[1] for a, b in zip(ours, theirs))
  stopped = sum(a[2] == 'stop' for a in ours)
  print(
    f'{len(ours)} prompts: {same_prompts} equal, {same_tokens} continued by '
    f'equal tokens, {stopped} of them to a stop before {_NEW_TOKENS} tokens'
  )
  return int(not same_prompts == same_tokens == len(theirs) == len(ours))


def _chat(word: str, n: int) -> list[dict[str, str]]:
  answer = ' '.join([word] * (n % 4 + 1))
  return [
    {'role': 'user', 'content': f'{word} {n}?'},
    {'role': 'assistant', 'content': answer},
  ]


def _write(path: pathlib.Path, rows) -> None:
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))


def _ours(folder: pathlib.Path, updates: int) -> list[tuple]:
  """(prompt, completion, stop reason) of each prompt, by our commands."""
  _run(
    f'--config={_ROOT}/experiments/quickstart.py:stage=sft',
    f'--workdir={folder}/run',
    f'--config.data.train={folder}/chats.jsonl',
    f'--config.tokenizer={folder}/tokens',
    *('--config.data.max_length=128', '--config.data.eval_pairs=4'),
    *('--config.data.drop_duplicates=false', '--config.train.batch_size=16'),
    f'--config.train.num_steps={updates}',
  )
  _run(
    '--mode=export',
    f'--workdir={folder}/run',
    f'--export_to={folder}/exported',
  )
  _run(
    '--mode=sample',
    f'--workdir={folder}/run',
    f'--config.sample.prompts={folder}/prompts.jsonl',
    '--config.sample.temperature=0',
    f'--config.sample.max_new_tokens={_NEW_TOKENS}',
  )
  (path,) = (folder / 'run/samples').glob('*.jsonl')
  rows = [json.loads(line) for line in path.read_text().splitlines()]
  return [
    (row['prompt_token_ids'], row['token_ids'], row['stop_reason'])
    for row in rows
  ]


def _run(*flags: str) -> None:
  command = [sys.executable, '-m', 'dpo_jax.main', *flags]
  subprocess.run(command, check=True, cwd=_ROOT, stdout=subprocess.DEVNULL)


if __name__ == '__main__':
  if len(sys.argv) < 2:
    sys.exit(__doc__)
  sys.exit(main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 150))
