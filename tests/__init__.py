"""Tests of DSO-JAX, one folder per room; `tests.reference` is what they compare with."""
