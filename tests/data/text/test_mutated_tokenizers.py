"""Spoilt tokenizer files: a tokenizer or one line of refusal, nothing else."""

import mutated_tokenizers


def test_every_mutation_is_loaded_or_refused():
  counts, failures = mutated_tokenizers.run(300, seed=1)
  assert not failures
  assert counts['loaded'] > 50 and counts['refused'] > 50
