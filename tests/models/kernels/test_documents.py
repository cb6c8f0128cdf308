"""documents: each text once, in one piece; attention as dense, on XLA alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import random_plans
import xla_documents

from dpo_jax.models.kernels import documents, proof, registry, splash


@pytest.mark.parametrize('seed', [0, 1])
def test_a_document_is_a_trunk_and_one_branch(seed):
  plan = random_plans.make(seed, num_rows=3)
  length = plan.rows.branch.shape[1]
  slots = documents.num_slots(length)
  make = jax.jit(documents.make_documents, static_argnums=(1, 2))
  docs = make(plan.rows, plan.branches, slots)
  docs = jax.tree.map(np.asarray, docs)
  assert slots % documents.TILE == 0 and not docs.is_lost_RL.any()
  for r in range(len(plan.rows.branch)):
    row = [field[r] for field in plan.rows]
    _, positions, prompts, branches = row[:4]
    for j in range(plan.branches):
      segments, source = docs.segments_RBS[r, j], docs.source_RBS[r, j]
      for prompt in range(1, prompts.max() + 1):
        text = source[segments == prompt]
        wanted = (prompts == prompt) & np.isin(branches, (0, j + 1))
        assert text.tolist() == np.flatnonzero(wanted).tolist()
        # Consecutive slots are consecutive positions: windows need it.
        assert (np.diff(np.flatnonzero(segments == prompt)) == 1).all()
        assert positions[text].tolist() == list(range(len(text)))
      assert (segments > 0).sum() == np.isin(branches, (0, j + 1))[
        prompts > 0
      ].sum()
  # Every token's output is read from one document.
  counted = docs.own_RBL.sum(axis=1)
  np.testing.assert_array_equal(counted, plan.rows.prompt_id > 0)


@pytest.mark.parametrize('seed', [1, 3])
def test_attention_on_them_is_dense_attention(seed, monkeypatch):
  plan = random_plans.make(seed)
  monkeypatch.setattr(splash, 'attend', xla_documents.attend)
  choice = registry.Choice('splash', plan.branches)
  errors = proof.compare(choice, plan.heads, plan.rows, jnp.float32)
  assert errors.are_small, errors

  # A window that is one short would be seen.
  def narrow(*args, window, **options):
    return xla_documents.attend(*args, window=window - 1, **options)

  monkeypatch.setattr(splash, 'attend', narrow)
  wrong = proof.compare(choice, plan.heads, plan.rows, jnp.float32)
  assert not wrong.are_small


def test_too_few_documents_or_slots_give_nan_not_numbers():
  plan = random_plans.make(0)
  assert plan.branches > 1
  x = jnp.ones((*plan.rows.branch.shape, 1, 4))

  @functools.partial(jax.jit, static_argnums=(0, 1))
  def run(branches, slots):
    docs = documents.make_documents(plan.rows, branches, slots)
    return documents.attend(lambda q, k, v, s: v, x, x, x, docs)

  length = documents.num_slots(x.shape[1])
  whole = run(plan.branches, length)
  assert np.isfinite(whole).all()
  few = np.isnan(run(plan.branches - 1, length)).any(axis=(2, 3))
  np.testing.assert_array_equal(few, plan.rows.branch == plan.branches)
  assert np.isnan(run(plan.branches, 16)).any()
  # Padding is 0, however many slots there are.
  assert (np.asarray(whole)[plan.rows.prompt_id == 0] == 0).all()
