"""What a run rests on: fingerprints of its data, tokenizer, template, weights.

Comes in: what a session reads, as it reads it. Goes out: the fingerprints to
keep, in env.json and in every checkpoint, or a refusal that names what is
another than when the run was started. Loads nothing and writes nothing.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
from ml_collections.config_dict import ConfigDict

from dpo_jax import errors, tree
from dpo_jax.data.text.encoders import Tokenizer
from dpo_jax.storage import files, run_dir
from dpo_jax.types import MESH_AXES, InputError, Params

# {fingerprint: config key of what it is of}. Causes come before effects.
_KEYS = {
  'tokenizer': 'tokenizer',
  'template': 'data.chat_template',
  'model.init_from': 'model.init_from',
  'reference.init_from': 'reference.init_from',
  'adapter.init_from': 'adapter.init_from',
  'data': 'data.train',
  'eval_data': 'data.eval',
  'judgements': 'data.train',
  'eval_judgements': 'data.eval',
}
_DIFFERS = {
  'tokenizer': 'another tokenizer than',
  'template': 'another chat template than',
  'data': 'other records than',
  'eval_data': 'other held-out records than',
  'judgements': 'other labels, weights, margins or scores than',
  'eval_judgements': 'other labels, weights, margins or scores than',
}


class Identity:
  """The fingerprints of one session, held against those of the run's first.

  Args:
    config: of the session.
    env: env.json of the run; {} if it has none.
    stored: config.json of the run; {} or None if it has none.
    trains: whether the command trains. Others may be given other held-out
      data than the run's.
    log: takes one line per difference that is harmless.
  """

  def __init__(
    self,
    config: ConfigDict,
    env: Mapping[str, Any],
    stored: Mapping[str, Any] | None = None,
    trains: bool = True,
    log: Callable[[str], None] = print,
  ):
    """Knows the run's first session; has seen nothing of this one."""
    self.seen: dict[str, str] = {}  # fingerprints of this session
    self._config = files.flatten(config)
    self._stored = files.flatten(stored or {})
    self._known = dict(env.get('fingerprints', {}))
    self._env = env
    self._trains = trains
    self._rounded: dict[str, str] = {}  # the run's own, where ours are rounded
    self._log = log

  def fingerprints(self) -> dict[str, str]:
    """Returns what the run rests on, to keep with it."""
    return self.seen | self._rounded

  def expect(self, fingerprints: Mapping[str, str]) -> None:
    """Takes a checkpoint's fingerprints: they count if env.json has none.

    Raises:
      InputError: something that this session read is not what they are of.
    """
    for name, value in fingerprints.items():
      self._known.setdefault(name, value)
      if name in self.seen:
        self._compare(name, value, self.seen[name])

  def take(self, fingerprints: Mapping[str, str]) -> None:
    """Takes this session's fingerprints of data, tokenizer and template."""
    for name in sorted(fingerprints, key=_order):
      self._take(name, fingerprints[name])

  def take_weights(self, key: str, params: Params | str) -> str:
    """Takes weights as they were loaded, on the devices; returns their digest.

    Args:
      key: the config key that names them, such as 'model.init_from'.
      params: the whole weights, float32, before any quantisation; or the digest
        that another run of this process got for them.
    """
    known = isinstance(params, str)
    digest = params if known else files.digest(tree.fingerprint(params))
    self._take(key, digest)
    return digest

  def _take(self, name: str, value: str) -> None:
    was = self.seen.setdefault(name, value)
    if was != value:
      raise errors.refuse(
        f'config.{_KEYS.get(name, name)}',
        'it changed while this command read it',
        'start again when nothing writes there',
      )
    self._compare(name, self._known.get(name, value), value)

  def _compare(self, name: str, was: str, now: str) -> None:
    """Refuses another fingerprint, or says why it is harmless."""
    if was == now or self._is_chosen_anew(name):
      return
    if '.' not in name or self._is_exact(name):
      raise self._other(name, was, now)
    self._rounded[name] = was
    self._log(
      f'config.{name}: not bitwise the weights of the start: they are '
      'computed, on another mesh, device or version of jax'
    )

  def _is_chosen_anew(self, name: str) -> bool:
    """Whether a command that only reads the run was given another one."""
    key = _KEYS.get(name, name)
    if self._trains or key not in self._stored:
      return False
    stored, now = files.as_json([self._stored[key], self._config.get(key)])
    return stored != now

  def _is_exact(self, key: str) -> bool:
    """Whether weights have to have the same bits as at the start.

    Those of files have. Random and merged ones are computed: another mesh,
    device or version of jax may round them another way.
    """
    source = self._config.get(key)
    if source and not _trains_adapter(source):
      return True
    now = {
      'jax': jax.__version__,
      'device_kind': jax.devices()[0].device_kind,
      'num_devices': len(jax.devices()),
    }
    axes = [f'mesh.{axis}' for axis in MESH_AXES]
    meshes = [
      [config.get(axis) for axis in axes]
      for config in (self._stored or self._config, self._config)
    ]
    return meshes[0] == meshes[1] and all(
      self._env.get(name, value) == value for name, value in now.items()
    )

  def _other(self, name: str, was: str, now: str) -> InputError:
    key = _KEYS.get(name, name)
    what = _DIFFERS.get(name, 'other weights than')
    value = self._config.get(key)
    source = f'{value!r} gives' if value else 'these are'
    # One of the two may be what is damaged.
    is_first = self._env.get('fingerprints', {}).get(name) == was
    kept = 'env.json' if is_first else 'the checkpoint'
    return errors.refuse(
      f'config.{key}',
      f'{source} {what} this run was started with (fingerprint {str(was)[:12]} '
      f'in {kept}, {now[:12]} now)',
      'put back what was there, or give a new --workdir',
    )


def of_template(config: ConfigDict, tokenizer: Tokenizer) -> str:
  """The digest of the chat template in use, or of all that a tokenizer has."""
  name = config.data.chat_template
  if name and files.at(name).is_file():
    return files.file_digest(name)
  named = tokenizer.chat_templates
  return files.digest(named.get(name, '') if name else dict(named))


def _order(name: str) -> int:
  return list(_KEYS).index(name) if name in _KEYS else len(_KEYS)


def _trains_adapter(source: str) -> bool:
  """Whether a source of weights is a run of an adapter: merged when loaded."""
  try:
    config = run_dir.RunDir(source).config()
  except InputError:
    return False  # a folder of Hugging Face's
  return bool(files.flatten(config).get('adapter.rank'))
