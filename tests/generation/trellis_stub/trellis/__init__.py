"""Stands for TRELLIS where a test runs `scripts/trellis_stage2.py`: its interface, no networks."""
