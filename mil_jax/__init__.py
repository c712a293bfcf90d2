"""Attention-based deep multiple instance learning in JAX and Flax."""
