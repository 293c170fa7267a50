"""Torch modules with TRELLIS's state-dict names: the oracle of the parity tests."""
