"""Atelier beside diffusers with PEFT: the same work, in one run, on one machine."""
