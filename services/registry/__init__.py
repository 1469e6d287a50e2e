"""The registry: adapters, their immutable versions, and the aliases that point at them.

Metadata is in SQL, bytes are in S3; a process holds neither, so any number of them serve side by side.
"""
