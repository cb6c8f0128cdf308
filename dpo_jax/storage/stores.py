"""The kinds of object stores: schemes, their packages, their file systems.

Comes in: the scheme of a URL. Goes out: fsspec's file system for it, or one
line that says why there is none. Asks no store anything.
"""

import functools
import importlib
import importlib.util
import pathlib
from typing import Any, NamedTuple

from dpo_jax import errors


class Scheme(NamedTuple):
  """A kind of store."""

  package: str  # on PyPI; the module has the same name
  protocol: str  # fsspec's name for it
  checkpoints: bool = False  # whether TensorStore writes there
  writes: bool = True


# The schemes that etils.epath knows, which Orbax uses.
SCHEMES = {
  'gs': Scheme('gcsfs', 'gs', checkpoints=True),
  's3': Scheme('s3fs', 's3', checkpoints=True),
  'az': Scheme('adlfs', 'az'),
  'hf': Scheme('huggingface_hub', 'hf', writes=False),
}


@functools.cache
def filesystem(scheme: str) -> Any:
  """Returns fsspec's file system of a scheme, which caches no listing."""
  fsspec = importlib.import_module('fsspec')
  config = importlib.import_module('fsspec.config')
  protocol = SCHEMES[scheme].protocol
  # Other processes write there too. As a default, it holds for Orbax as well,
  # which makes its own file system through epath.
  for name in fsspec.get_filesystem_class(protocol).protocol:
    config.conf.setdefault(name, {})['use_listings_cache'] = False
  return fsspec.filesystem(protocol, skip_instance_cache=True)


def check(url: str, scheme: str, pure: pathlib.PurePosixPath) -> None:
  """Refuses a URL that cannot be used, before anything starts."""
  if scheme not in SCHEMES:
    known = ', '.join(f'{name}://' for name in SCHEMES)
    hint = errors.did_you_mean(scheme, SCHEMES)
    raise errors.refuse(
      f'{url!r}',
      f'{scheme}:// is not supported',
      f'{hint}use a path of this machine, or {known}',
    )
  package = SCHEMES[scheme].package
  if importlib.util.find_spec(package) is None:
    raise errors.refuse(
      f'{url!r}',
      f'{scheme}:// needs the package {package}, which is not installed',
      f'pip install {package}, or use a path of this machine',
    )
  check_name(url)
  if not pure.parts or not pure.parts[0].strip('.'):
    raise errors.refuse(
      f'{url!r}', 'names no bucket', f'write {scheme}://BUCKET/NAME'
    )


def check_name(url: str) -> None:
  """Refuses a name by which Orbax would remove other objects too."""
  if any(c in url for c in '*?['):
    raise errors.refuse(
      f'{url!r}',
      'has a wildcard in it (* ? [), which stores take for other names too',
      'use a name without',
    )
