"""Atelier on one machine: every server as a child process of `atelier up`."""
