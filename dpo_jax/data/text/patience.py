"""A call of a library that may never return -> its value, or an error in time.

Comes in: an action that lets other threads run. Goes out: what it returns or
raises. It runs in a thread of its own, so that the main thread hears signals
meanwhile, and can go on without it: a thread cannot be ended.
"""

import threading
from collections.abc import Callable
from typing import Any

_LOOK = 0.05  # seconds from one look to the next


def call(action: Callable[[], Any], seconds: float) -> Any:
  """Returns what an action returns.

  Args:
    action: called once.
    seconds: it may take, counted in looks: a process that was stopped and goes
      on has waited for none of them.

  Raises:
    TimeoutError: it is not done by then; it goes on, and nobody waits for it.
    BaseException: what it raised, or what a signal raises here.
  """
  outcome: list[tuple[Any, BaseException | None]] = []
  ended = threading.Event()

  def work():
    try:
      outcome.append((action(), None))
    except BaseException as error:
      outcome.append((None, error))
    ended.set()

  # A daemon: the process may end while it is at work.
  threading.Thread(target=work, daemon=True).start()
  for _ in range(1 + int(seconds / _LOOK)):
    if ended.wait(_LOOK):
      break
  else:
    raise TimeoutError(f'not done after {seconds:.0f} s')
  value, error = outcome[0]
  if error is not None:
    raise error
  return value
