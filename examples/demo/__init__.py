"""The demo: `python -m examples.demo`, from the root of the repository."""
