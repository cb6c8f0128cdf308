"""Hostile artefacts, written anew: what a stranger's folder or file may hold.

Comes in: an empty folder and a sound run. Goes out: an artefact per subfolder,
with the options that make a command read it.
"""

import pathlib
import pickle
import shutil
import sys
from collections.abc import Callable, Iterator

import machine
import numpy as np
import strange
import strange_data
import strange_models


def write(top: pathlib.Path, run: pathlib.Path) -> list[strange.Artefact]:
  """Writes all artefacts; returns what they are.

  Args:
    top: a folder that is made.
    run: a sound one, of machine.flags.
  """
  (top / 'good').mkdir(parents=True)
  good = _good(top / 'good')
  found = []
  for maker in (*strange_models.MAKERS, *strange_data.MAKERS):
    found += maker(top, good)
  found += _runs(top, run)
  names = [artefact.name for artefact in found]
  assert len(set(names)) == len(names), 'a name is taken twice'
  return found


def _good(folder: pathlib.Path) -> pathlib.Path:
  """Writes a sound model, a tokenizer, an adapter and a chat."""
  sys.path += [str(machine.ROOT / 'tests' / x) for x in ('run', 'data/text')]
  import small_models
  import toy_tokenizers

  from dpo_jax import tree
  from dpo_jax.models import adapters, presets
  from dpo_jax.models.adapter_spec import AdapterSpec
  from dpo_jax.storage import peft_checkpoint

  small_models.write(folder / 'model', vocab_size=259)
  config = presets.get('tiny', vocab_size=259)
  spec = AdapterSpec(2, 8.0, ('attention/query',))
  shapes = adapters.shapes(config, spec)
  leaves = {name: np.zeros(shape, 'f4') for name, shape in shapes.items()}
  peft_checkpoint.save(
    folder / 'adapter',
    tree.unflatten_names(leaves),
    config,
    spec,
    base=str(folder / 'model'),
  )
  toy_tokenizers.save(
    folder / 'tokenizer',
    toy_tokenizers.byte_level(),
    toy_tokenizers.CHATML,
    eos_token='</s>',
  )
  rows = [strange.row(i) for i in range(40)]
  strange.jsonl(folder / 'chat.jsonl', rows)
  return folder


def _runs(top: pathlib.Path, run: pathlib.Path) -> Iterator[strange.Artefact]:
  """Runs of strangers, cut at step 4, which the command is told to go on with.

  They go on or are refused; what lies beside them stays as it is.
  """

  def made(name: str, act: Callable[[pathlib.Path, pathlib.Path], None]):
    folder = top / name.replace(' ', '_')
    workdir = machine.copy(run, folder / 'run', at=4)
    beside = folder / 'beside'
    beside.mkdir()
    (beside / 'x').write_text('x\n')
    act(workdir, beside)
    return strange.Artefact(
      'runs', name, str(beside), {}, trains=None, workdir=str(workdir)
    )

  def link(name: str, target: str = ''):
    def act(workdir, beside):
      path = workdir / name
      if path.is_dir():
        shutil.rmtree(path)
      strange.link(path, str(beside / target))

    return act

  for name in ('set_aside', 'per_example', 'tensorboard', 'samples'):
    yield made(f'a run whose {name} leads out', link(name))
  yield made('a run whose metrics lead out', link('metrics.jsonl', 'x'))
  yield made('a run whose DONE leads out', link('DONE', 'new'))
  yield made('a run whose lock leads out', link('.lock', 'new'))
  for name in ('config.json', 'env.json', 'model.json', 'metrics.jsonl'):
    yield made(
      f'a run whose {name} is a pipe', lambda w, _, n=name: strange.pipe(w / n)
    )
    yield made(
      f'a run whose {name} is deep',
      lambda w, _, n=name: (w / n).write_text('[' * 10**5),
    )

  def pickled(workdir, beside):
    del beside
    for path in sorted((workdir / 'per_example').glob('*.npz')):
      bomb = np.array([strange.Bomb(top)], object)
      np.savez(path, prompt=bomb, loss=bomb)
    for path in (workdir / 'checkpoints' / '4').rglob('*'):
      if path.is_file() and path.name != 'commit_success.txt':
        path.write_bytes(pickle.dumps(strange.Bomb(top)))

  yield made('a run of pickles', pickled)
