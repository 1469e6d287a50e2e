"""Diffusion models: loading, adapters in slots, sampling, scores. Importing the package itself imports nothing."""
