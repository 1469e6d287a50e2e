"""Tests: real processes, real sockets, a real S3 server."""
