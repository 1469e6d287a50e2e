"""What the trainer counts, beside its RPCs. No tenant, job or prompt is a label."""

from __future__ import annotations

from prometheus_client import Counter

STEPS = Counter("atelier_training_steps_total", "Optimizer steps done.")
RUNS_ENDED = Counter("atelier_training_runs_total", "Runs that ended: SUCCEEDED, or the reason.", ["outcome"])
