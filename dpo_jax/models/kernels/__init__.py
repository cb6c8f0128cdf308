"""Attention by fused kernels, each equal to models/attention.py."""
