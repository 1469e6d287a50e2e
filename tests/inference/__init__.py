"""The inference service: its process over a real registry and a real S3 server, and its parts."""
