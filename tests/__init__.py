"""Tests: real processes, real sockets, real servers."""
