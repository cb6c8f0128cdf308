"""What every kernel for documents must give, by one mask [S, S] on any device.

It takes the place of splash.attend in tests of what lies around a kernel.
"""

import jax
import jax.numpy as jnp


def attend(q, k, v, segments, *, scale, window, softcap, interpret=False):
  del interpret
  k, v = (jnp.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in (k, v))
  scores = jnp.einsum('NQHK,NSHK->NHQS', q * scale, k)
  if softcap:
    scores = softcap * jnp.tanh(scores / softcap)
  slots = jnp.arange(q.shape[1])
  back = slots[:, None] - slots
  seen = (segments[:, :, None] == segments[:, None]) & (back >= 0)
  seen &= back < (window or len(slots))
  weights = jax.nn.softmax(jnp.where(seen[:, None], scores, -1e30), axis=-1)
  return jnp.einsum('NHQS,NSHK->NQHK', weights, v)
