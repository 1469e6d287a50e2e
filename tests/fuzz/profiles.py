"""How long fuzzing lasts: seconds with the same inputs in `make test`, minutes with new ones in `make test-all`."""

from __future__ import annotations

from hypothesis import HealthCheck, Phase, settings

_SLOW_STRATEGIES = (HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much)

QUICK = settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=_SLOW_STRATEGIES)
THOROUGH = settings(
    max_examples=10_000,
    deadline=None,
    database=None,
    suppress_health_check=_SLOW_STRATEGIES,
    phases=(Phase.explicit, Phase.generate, Phase.shrink),
)
