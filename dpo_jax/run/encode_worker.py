"""chunks of records -> packed records: the command of an encoding process.

Goes out first: a word that it is ready. Comes in by the same connection: the
tokenizer and the options, then chunks. Goes out: the answer to each, an error
among them. Ends with the connection. Light on purpose: it imports no jax, and
runs once per core.
"""

import pickle
import sys
import traceback
from multiprocessing.connection import Connection

from dpo_jax.data.text import encode
from dpo_jax.data.text.ledger import Ledger
from dpo_jax.storage import packed_records
from dpo_jax.types import InputError, PreferenceRecord

# The records, duplicates included.
Answer = tuple[packed_records.Packed, Ledger]


def packed(encoder: encode.Encoder, chunk: list[PreferenceRecord]) -> Answer:
  """Encodes a chunk."""
  encoded, counts = encoder.encode(chunk)
  return packed_records.pack(encoded), counts


def main(descriptor: int) -> None:
  """Answers every chunk that comes, until the other side closes."""
  with Connection(descriptor) as connection:
    try:
      # The other side sends nothing before: it would wait for the imports.
      connection.send(None)
      encoder = encode.Encoder(*pickle.loads(connection.recv_bytes()))
      while True:
        connection.send(_answer(encoder, connection.recv()))
    except (EOFError, BrokenPipeError, ConnectionResetError):
      return  # nobody is left to answer


def _answer(
  encoder: encode.Encoder, chunk: list[PreferenceRecord]
) -> Answer | Exception:
  """The chunk encoded, or the error that one process would raise."""
  try:
    return packed(encoder, chunk)
  except InputError as error:
    return error
  except Exception:  # a fault of ours: shown whole, raised by the other side
    return RuntimeError(traceback.format_exc())


if __name__ == '__main__':
  main(int(sys.argv[1]))
