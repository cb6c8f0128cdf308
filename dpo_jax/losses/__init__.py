"""Preference losses: one file a family, one registry."""
