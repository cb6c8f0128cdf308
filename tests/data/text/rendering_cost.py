"""CPU time of rendering chats, beside that of another tree of this package.

  git archive COMMIT | tar -x -C TREE
  python tests/data/text/rendering_cost.py TREE FOLDER/*.jinja

Each tree renders in processes of its own, by turns; per template and chat the
least time of a process counts. A template that refuses a chat is left out.
Prints the ratio of the sums and the largest of one.
"""

import json
import os
import pathlib
import statistics
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[3]
_ROUNDS = 3
_PROGRAM = """
import importlib, json, sys, time
for name in ('dpo_jax.data.text.templates', 'dpo_jax.data.templates'):
  try:
    templates = importlib.import_module(name)
    break
  except ModuleNotFoundError:
    continue
try:
  from dpo_jax.data.text.control_tokens import ControlTokens
except ModuleNotFoundError:
  ControlTokens = templates.ControlTokens
NAMES = ('<s>', '</s>', '<unk>', '<|im_start|>', '<|im_end|>', '<|eot_id|>')
TEXT = 'Lorem ipsum dolor sit amet, consetetur. ' * 12
found = {}
for path in sys.argv[1:]:
  template = templates.ChatTemplate(
    open(path).read(),
    special_tokens={'bos_token': '<s>', 'eos_token': '</s>'},
    control_tokens=ControlTokens(NAMES),
  )
  for turns in (1, 3):
    for first in ([], [{'role': 'system', 'content': 'Be brief.'}]):
      chat = first + turns * [
        {'role': role, 'content': TEXT} for role in ('user', 'assistant')
      ]
      try:
        template.render(chat)
      except Exception:
        continue
      seconds = []
      for _ in range(7):
        start = time.process_time()
        for _ in range(60):
          template.render(chat)
        seconds.append(time.process_time() - start)
      found[f'{path} {len(chat)}'] = min(seconds)
print(json.dumps(found))
"""


def measured(root: str, paths: list[str]) -> dict[str, float]:
  """Seconds of each template and chat, in one process of a tree."""
  done = subprocess.run(
    [sys.executable, '-c', _PROGRAM, *paths],
    env=os.environ | {'PYTHONPATH': root},
    cwd=root,
    check=True,
    stdout=subprocess.PIPE,
  )
  return json.loads(done.stdout)


def main(tree: str, paths: list[str]) -> None:
  """Prints the ratios of this tree to another."""
  paths = [os.path.abspath(path) for path in paths]
  rounds = [
    [measured(str(root), paths) for root in (ROOT, tree)]
    for _ in range(_ROUNDS)
  ]
  here, there = (
    {key: min(r[side][key] for r in rounds) for key in rounds[0][side]}
    for side in (0, 1)
  )
  both = sorted(here.keys() & there.keys())
  ratios = {key: here[key] / there[key] for key in both}
  whole = sum(here[k] for k in both) / sum(there[k] for k in both)
  worst = max(ratios, key=ratios.get)
  print(
    f'{len(paths)} templates, {len(both)} chats: {whole:.2f} times the CPU '
    f'time, median {statistics.median(ratios.values()):.2f}, at most '
    f'{ratios[worst]:.2f} ({os.path.basename(worst)})'
  )


if __name__ == '__main__':
  main(sys.argv[1], sys.argv[2:])
