"""Sweeps: many runs from one command, in one folder."""
