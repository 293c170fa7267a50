"""Prompts become labelled samples: conditions, latents, occupancy, drops."""
