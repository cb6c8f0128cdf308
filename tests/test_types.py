"""types: the policy and the reference that a Frozen gives to a step."""

from dpo_jax.types import Adapted, Frozen

BASE, OWN, TRAINED, GIVEN = {'w': 1}, {'w': 2}, {'a': 3}, {'a': 4}


def test_all_weights_are_trained():
  frozen = Frozen(weights=OWN)
  assert frozen.policy(TRAINED) is TRAINED
  assert frozen.reference() is OWN


def test_no_reference_model():
  assert Frozen().policy(TRAINED) is TRAINED
  assert Frozen().reference() is None


def test_an_adapter_shares_its_base_with_the_reference():
  frozen = Frozen(BASE, 8.0)
  assert frozen.policy(TRAINED) == Adapted(BASE, TRAINED, 8.0)
  assert frozen.reference() is BASE


def test_a_reference_with_an_adapter_or_separate_weights():
  first = Frozen(BASE, 8.0, adapter=GIVEN)
  assert first.reference() == Adapted(BASE, GIVEN, 8.0)
  moved = Frozen(BASE, 8.0, weights=OWN)
  assert moved.policy(TRAINED) == Adapted(BASE, TRAINED, 8.0)
  assert moved.reference() is OWN
