"""Metric name -> unit on an axis.

Comes in: a name of metrics.jsonl. Goes out: its unit, '' if it has none.
"""

UPDATES = 'updates'
_UNITS = {
  'rewards/accuracies': 'share won',
  'displacement': 'share',
  'kl': 'nats',
  'entropy': 'nats per token',
  'num_tokens': 'tokens',
}
_BY_BEGINNING = {
  'rewards/': 'nats',
  'logps/': 'nats',
  'lengths/': 'tokens',
}


def unit(name: str) -> str:
  """The unit of a metric, such as 'nats'."""
  if name in _UNITS:
    return _UNITS[name]
  for beginning, text in _BY_BEGINNING.items():
    if name.startswith(beginning):
      return text
  return ''


def axis(label: str, name: str) -> str:
  """A label with its unit, such as 'margin (nats)'."""
  text = unit(name)
  return f'{label} ({text})' if text else label
