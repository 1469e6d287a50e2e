"""Tests of what the services share on the wire."""
