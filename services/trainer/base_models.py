"""The registry is told of the base models that jobs are trained on, by the trainer's own process: workers may not.

What the registry knows is asked anew for each job: it may be another one by then.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from atelier.client.base_models import BaseModelClient
from atelier.client.connection import Endpoint
from atelier.diffusion.base_layers import describe_base
from atelier.errors import FailedPreconditionError, NotFoundError
from atelier.rpc.identity import TokenAuthority
from atelier.rpc.scopes import OPERATOR, READER
from services.trainer.queue import Assignment

TOKEN_SECONDS = 60.0


class BaseModels:
    """Tells the registry of base models.

    Args:
        authority: issues the trainer's own tokens.
        folders: of the base models, by name.
    """

    def __init__(self, registry: Endpoint, authority: TokenAuthority, folders: Mapping[str, Path]) -> None:
        self._registry = registry
        self._authority = authority
        self._folders = folders

    def tell(self, assignment: Assignment) -> None:
        """Tells of a job's base model, unless the registry knows it.

        Raises:
            FailedPreconditionError: the base model has changed since the job was created.
        """

        def own_token() -> str:
            return self._authority.issue(
                tenant=assignment.tenant,
                subject="trainer",
                scopes=[READER, OPERATOR],
                lifetime_seconds=TOKEN_SECONDS,
            )

        with self._registry.connect(own_token) as connection:
            client = BaseModelClient(connection)
            try:
                client.base_model(assignment.base_digest)
            except NotFoundError:
                described = describe_base(self._folders[assignment.base_name], assignment.base_name)
                if described.base_model.digest != assignment.base_digest:
                    raise FailedPreconditionError(
                        f"the base model {assignment.base_name} has changed since the job was created",
                        reason="BASE_MODEL_CHANGED",
                    ) from None
                client.register(described)
