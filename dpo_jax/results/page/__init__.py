"""Runs -> one self-contained HTML page that opens offline."""
