"""fa4 and tokamax: their own references for any device give dense attention.

Their packages need Python 3.12. With them installed:

    DPO_JAX_REAL_PARTS=1 python -m pytest tests/models/kernels
"""

import functools
import importlib.util
import os

import jax.numpy as jnp
import numpy as np
import pytest
import random_plans

from dpo_jax.models.kernels import fa4, proof, registry, tokamax

REFERENCES = {
  'fa4': ('fa4_jax', fa4, {'backend': 'reference'}),
  'tokamax': ('tokamax', tokamax, {'implementation': 'xla'}),
}


@pytest.mark.parametrize('seed', [9, 6])  # a window; a soft cap
@pytest.mark.parametrize('name', REFERENCES)
def test_its_reference_gives_dense_attention(name, seed, monkeypatch):
  package, module, options = REFERENCES[name]
  if not os.environ.get('DPO_JAX_REAL_PARTS'):
    pytest.skip('set DPO_JAX_REAL_PARTS=1 to run the package itself')
  assert importlib.util.find_spec(package), f'pip install {package}'
  reference = functools.partial(module.attend, **options)
  monkeypatch.setattr(module, 'attend', reference)
  plan = random_plans.make(seed)
  assert plan.branches > 1
  softcap = plan.heads.softcap if registry.KERNELS[name].has_softcap else None
  heads = plan.heads._replace(softcap=softcap)
  choice = registry.Choice(name, plan.branches)
  errors = proof.compare(choice, heads, plan.rows, jnp.float32)
  assert errors.are_small, errors


@pytest.mark.parametrize('window', [None, 3])
def test_first_keys(window):
  segments = np.array([[1, 1, 1, 1, 1, 3, 3, 0]])
  got = np.asarray(tokamax.first_keys(jnp.asarray(segments), window))[0, 0]
  for q, first in enumerate(got):
    back = min(window or 8, q + 1)
    seen = [
      k for k in range(q - back + 1, q + 1) if segments[0, k] == segments[0, q]
    ]
    assert first == seen[0]
