"""Atelier: personalization of text-to-image diffusion models as a service."""

__version__ = "0.1.0"
