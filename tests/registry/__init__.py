"""Tests of the registry service as a process."""
