"""Exact cases: losses on tables of logits whose optimum is known."""
