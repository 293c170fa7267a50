"""Post-training of image-to-3D generators for physical stability, in JAX.

Importing this package imports nothing else: JAX reads its environment when it is first imported,
so the commands must be able to set it before.
"""

__version__ = "0.1.0.dev0"
