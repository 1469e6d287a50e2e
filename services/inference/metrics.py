"""What the engines and the adapter cache count. No label ever names a tenant, an adapter or a prompt."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

QUEUED_REQUESTS = Gauge("atelier_inference_queued_requests", "Requests that have not begun to denoise.")
STEP_ROWS = Histogram(
    "atelier_inference_step_rows",
    "Rows of one denoising step; an image under guidance is two rows.",
    buckets=(1, 2, 4, 6, 8, 12, 16, 24, 32, 64),
)
STEP_SECONDS = Histogram(
    "atelier_inference_step_seconds",
    "Seconds of one denoising step.",
    buckets=(0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5),
)
ADAPTER_LOADS = Counter(
    "atelier_inference_adapter_loads_total",
    "Adapters by where they were found: slot, host, disk or registry. Requests that load one together count once.",
    ("source",),
)
SIGNATURE_CHECKS = Counter(
    "atelier_inference_signature_checks_total",
    "Versions that requests named, by what their signatures were found to be: valid, missing, invalid or off.",
    ("result",),
)
SLOT_EVICTIONS = Counter("atelier_inference_slot_evictions_total", "Idle adapters that made room for others.")
IMAGES = Counter("atelier_inference_images_total", "Images generated.")
