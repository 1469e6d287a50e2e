"""A launcher for the peer's scripts, and in `modules/` what they import and is not installed."""
