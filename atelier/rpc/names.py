"""Resource names (AIP-122), checked and taken apart.

The tenant of a name is compared with the caller's credential before anything is looked up, so that the answer
about another tenant's resource is the same whether or not it exists. `-` stands for the caller's tenant.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from atelier.errors import InvalidArgumentError, PermissionDeniedError
from atelier.rpc.call import current_tenant

ID_PATTERN = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?")
ID_RULE = "1 to 63 of a-z, 0-9 and hyphen, the first a letter, the last no hyphen"
MAX_PROMPT_CHARACTERS = 2000
"""Of every prompt, in every service: what one accepts, none that gets it later refuses."""
_VARIABLE = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True, slots=True)
class ResourcePattern:
    """A kind of resource name, such as `tenants/{tenant}/adapters/{adapter}`."""

    pattern: str

    def format(self, **ids: str) -> str:
        """The name with these ids; the tenant is the caller's unless given."""
        if "tenant" not in ids:
            ids["tenant"] = current_tenant()
        return self.pattern.format(**ids)

    def parse(self, name: str, field: str) -> dict[str, str]:
        """The ids in a name of the caller's tenant.

        Raises:
            InvalidArgumentError: the name has not this pattern's form; names `field`.
            PermissionDeniedError: the name belongs to another tenant.
        """
        expression = _VARIABLE.sub(r"(?P<\1>[a-z0-9-]{1,63})", self.pattern)
        match = re.fullmatch(expression, name)
        if match is None:
            raise InvalidArgumentError(field, f"is {shown(name)}; it must have the form {self.pattern}")
        ids = match.groupdict()
        caller = current_tenant()
        if ids["tenant"] not in ("-", caller):
            raise PermissionDeniedError(f"{field}: the credential does not reach other tenants' resources")
        return {**ids, "tenant": caller}


TENANT = ResourcePattern("tenants/{tenant}")
ADAPTER = ResourcePattern("tenants/{tenant}/adapters/{adapter}")
VERSION = ResourcePattern("tenants/{tenant}/adapters/{adapter}/versions/{version}")
ALIAS = ResourcePattern("tenants/{tenant}/adapters/{adapter}/aliases/{alias}")
UPLOAD = ResourcePattern("tenants/{tenant}/uploads/{upload}")
DATASET = ResourcePattern("tenants/{tenant}/datasets/{dataset}")
JOB = ResourcePattern("tenants/{tenant}/jobs/{job}")
TOKEN = ResourcePattern("tenants/{tenant}/tokens/{token}")
BATCH = ResourcePattern("tenants/{tenant}/batches/{batch}")


def check_id(value: str, field: str) -> str:
    """`value`, when it can be the last part of a resource name."""
    if not ID_PATTERN.fullmatch(value):
        raise InvalidArgumentError(field, f"is {shown(value)}; allowed are {ID_RULE}")
    return value


def check_text(value: str, field: str, *, max_characters: int, required: bool = False) -> str:
    """`value`, when it is text of allowed length; required text must have a visible character."""
    if required and not value.strip():
        raise InvalidArgumentError(field, f"is empty; 1 to {max_characters} characters are allowed")
    if len(value) > max_characters:
        raise InvalidArgumentError(field, f"has {len(value)} characters; at most {max_characters} are allowed")
    if "\0" in value:
        raise InvalidArgumentError(field, "holds a NUL character; text is allowed")
    return value


def shown(value: str, max_characters: int = 80) -> str:
    """A quoted, shortened form of a caller's own text for an error message."""
    return repr(value if len(value) <= max_characters else value[:max_characters] + "…")
