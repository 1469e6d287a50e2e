"""Examples, among them the demo: `python -m examples.demo`."""
