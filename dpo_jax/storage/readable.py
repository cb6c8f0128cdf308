"""Sizes and times as people read them."""


def size(num_bytes: float) -> str:
  """Returns a number of bytes in a readable unit, such as '1.2 GB'."""
  for unit in ('B', 'kB', 'MB', 'GB'):
    if num_bytes < 1000:
      return f'{num_bytes:.3g} {unit}'
    num_bytes /= 1000
  return f'{num_bytes:.3g} TB'


def clock(seconds: float) -> str:
  """Returns hours, minutes and seconds, such as '1:02:03'."""
  whole = int(seconds)
  return f'{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}'
