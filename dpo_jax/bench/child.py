"""A process that measures one variant: python -m dpo_jax.bench.child.

Comes in: a folder with options.json and pairs.npz, and the variant's name.
Goes out: answers to the questions on stdin, see protocol.py.
"""

import pathlib
import sys

from dpo_jax.bench import protocol
from dpo_jax.run import host_memory
from dpo_jax.storage import files


def main(folder: pathlib.Path, name: str) -> None:
  """Builds the variant and answers until stdin closes."""
  channel_answers = {}

  def info():
    # Before jax starts its threads, as the command does.
    host_memory.keep_freed()
    from dpo_jax.bench import step, variants, workload

    options = step.Options(**files.read_json(folder / 'options.json'))
    records = workload.load(folder / 'pairs.npz')
    ours = variants.Ours(options, records, name)
    channel_answers.update(variants.answers(ours, folder, options.dtype))
    return ours.info()

  channel_answers['info'] = info
  protocol.serve(channel_answers)


if __name__ == '__main__':
  main(pathlib.Path(sys.argv[1]), sys.argv[2])
