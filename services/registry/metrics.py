"""What the registry counts beside its RPCs. No label ever names a tenant, an adapter or a content."""

from __future__ import annotations

from prometheus_client import Counter

STORED_BYTES = Counter("atelier_registry_stored_bytes_total", "Bytes of files that were put into the object store.")
SERVED_BYTES = Counter("atelier_registry_served_bytes_total", "Bytes of files that were streamed to callers.")
PUBLISHED_VERSIONS = Counter("atelier_registry_published_versions_total", "Versions that became visible.")
COLLECTED = Counter("atelier_registry_collected_total", "What the garbage collection removed, by kind.", ["kind"])
SCRUBBED_BYTES = Counter("atelier_registry_scrubbed_bytes_total", "Bytes of contents that were read again.")
ROTTEN = Counter("atelier_registry_rotten_total", "Contents that were found missing or changed, by kind.", ["kind"])
JANITOR_FAILURES = Counter("atelier_registry_janitor_failures_total", "Passes of the janitor that ended in an error.")
