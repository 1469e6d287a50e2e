"""Bearer tokens: made, listed, rotated, revoked, and looked up by the digests of their secrets.

A token gives at most what its maker's credential allows, and so does a new secret for it. A token has one earlier
secret at most: rotating it again within the overlap ends the first one at once. Tokens that have expired stay listed
until they are revoked.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

from google.protobuf.empty_pb2 import Empty
from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from atelier.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    UnauthenticatedError,
)
from atelier.pb.common.v1.common_pb2 import Scope
from atelier.pb.registry.v1 import tokens_pb2 as pb
from atelier.rpc.call import current_call
from atelier.rpc.identity import SECRET_PREFIX, Identity
from atelier.rpc.names import TENANT, TOKEN, check_id, check_text
from atelier.rpc.pages import parse_page
from atelier.rpc.scopes import SCOPE_NAMES, scope_name, scope_named, with_included
from atelier.rpc.tokens import SECRET_UNKNOWN, TokenVerifier, Verified, secret_digest
from atelier.storage.database import Database, to_timestamp, utc_now
from services.registry.token_tables import TokenRow

SECRET_BYTES = 32
"""Of randomness: 43 characters of base64."""
MAX_LIFE = timedelta(days=366)
USUAL_LIFE = timedelta(days=90)
MAX_OVERLAP = timedelta(days=7)
USUAL_OVERLAP = timedelta(days=1)
MAX_DESCRIPTION_CHARACTERS = 200
REMEMBERED_SECONDS = 3.0


def create(session: Session, request: pb.CreateTokenRequest) -> pb.CreateTokenResponse:
    """Makes a token; its secret is in the answer and nowhere else."""
    tenant = TENANT.parse(request.parent, "parent")["tenant"]
    token_id = check_id(request.token_id, "token_id")
    secret = _new_secret()
    row = TokenRow(
        tenant=tenant,
        token_id=token_id,
        scopes=_wanted_scopes(request.token.scopes),
        description=check_text(
            request.token.description, "token.description", max_characters=MAX_DESCRIPTION_CHARACTERS
        ),
        secret_sha256=secret_digest(secret),
        create_time=utc_now(),
        rotate_time=utc_now(),
        expire_time=_wanted_end(request.token),
    )
    _check_may_give(row.scopes)
    if session.get(TokenRow, (tenant, token_id)) is not None:
        name = TOKEN.format(tenant=tenant, token=token_id)
        raise AlreadyExistsError(f"there is a {name} already; rotate or revoke it", metadata={"token": name})
    session.add(row)
    return pb.CreateTokenResponse(token=to_message(row), secret=secret)


def list_page(session: Session, request: pb.ListTokensRequest) -> pb.ListTokensResponse:
    """A page of the tenant's tokens, by id."""
    tenant = TENANT.parse(request.parent, "parent")["tenant"]
    page = parse_page(request.page_size, request.page_token, "tokens", tenant)
    query = select(TokenRow).where(TokenRow.tenant == tenant, TokenRow.token_id > page.after)
    rows = session.scalars(query.order_by(TokenRow.token_id).limit(page.size + 1)).all()
    rows, next_page_token = page.cut(rows, key=lambda row: row.token_id)
    return pb.ListTokensResponse(tokens=map(to_message, rows), next_page_token=next_page_token)


def rotate(session: Session, request: pb.RotateTokenRequest) -> pb.CreateTokenResponse:
    """Gives a token a new secret; when it ends to work stays as it was."""
    overlap = _wanted_overlap(request)
    row = _find(session, request.name)
    _check_may_give(row.scopes)
    now = utc_now()
    if row.expire_time <= now:
        raise FailedPreconditionError(f"{request.name} has expired; revoke it and make another", reason="TOKEN_EXPIRED")
    secret = _new_secret()
    row.old_secret_sha256, row.old_expire_time = row.secret_sha256, now + overlap
    row.secret_sha256, row.rotate_time = secret_digest(secret), now
    return pb.CreateTokenResponse(token=to_message(row), secret=secret)


def revoke(session: Session, request: pb.RevokeTokenRequest) -> Empty:
    """Ends a token."""
    session.delete(_find(session, request.name))
    return Empty()


def verify(session: Session, secret: str) -> pb.VerifyTokenResponse:
    """Whom a secret stands for; UnauthenticatedError when that is nobody now."""
    digest = secret_digest(secret)
    row = session.scalar(
        select(TokenRow).where(or_(TokenRow.secret_sha256 == digest, TokenRow.old_secret_sha256 == digest))
    )
    end = _end(row, digest) if row is not None else None
    if row is None or end is None or end <= utc_now():
        raise UnauthenticatedError("the secret stands for nobody", reason=SECRET_UNKNOWN)
    return pb.VerifyTokenResponse(
        tenant=row.tenant,
        subject=row.token_id,
        scopes=map(scope_named, row.scopes),
        expire_time=to_timestamp(end),
    )


def verifier(database: Database) -> TokenVerifier:
    """Verifies the tokens of the registry's own callers. VerifyToken, which others ask, remembers nothing."""

    def ask(secret: str) -> Verified:
        with database.transaction(read_only=True) as session:
            found = verify(session, secret)
        identity = Identity(tenant=found.tenant, subject=found.subject, scopes=frozenset(found.scopes))
        return Verified(identity=identity, expire_seconds=found.expire_time.ToNanoseconds() / 1e9)

    return TokenVerifier(ask, good_seconds=REMEMBERED_SECONDS)


def to_message(row: TokenRow) -> pb.Token:
    """The token as the API tells it."""
    return pb.Token(
        name=TOKEN.format(tenant=row.tenant, token=row.token_id),
        scopes=map(scope_named, row.scopes),
        description=row.description,
        create_time=to_timestamp(row.create_time),
        expire_time=to_timestamp(row.expire_time),
        rotate_time=to_timestamp(row.rotate_time),
    )


def _new_secret() -> str:
    return SECRET_PREFIX + secrets.token_urlsafe(SECRET_BYTES)


def _end(row: TokenRow, digest: str) -> datetime | None:
    """When this secret of a token ends to work."""
    if row.secret_sha256 == digest or row.old_expire_time is None:
        return row.expire_time
    return min(row.expire_time, row.old_expire_time)


def _find(session: Session, name: str) -> TokenRow:
    ids = TOKEN.parse(name, "name")
    row = session.get(TokenRow, (ids["tenant"], ids["token"]), with_for_update=True)
    if row is None:
        name = TOKEN.format(**ids)
        raise NotFoundError(f"there is no {name}", reason="TOKEN_NOT_FOUND", metadata={"token": name})
    return row


def _check_may_give(names: Iterable[str]) -> None:
    """A credential passes on what it has itself, or what that includes."""
    missing = set(map(scope_named, names)) - with_included(current_call().scopes)
    if missing:
        listed = ", ".join(sorted(map(scope_name, missing)))
        raise PermissionDeniedError(
            f"token.scopes: the credential does not have {listed}, so it gives no token that has",
            reason="SCOPE_MISSING",
            metadata={"scope": listed},
        )


def _wanted_scopes(scopes: Iterable[Scope]) -> list[str]:
    names = sorted({scope_name(scope) if scope in Scope.values() else str(scope) for scope in scopes})
    if not names or not set(names) <= set(SCOPE_NAMES):
        given = ", ".join(names) or "empty"
        raise InvalidArgumentError("token.scopes", f"is {given}; allowed are some of {', '.join(SCOPE_NAMES)}")
    return names


def _wanted_end(token: pb.Token) -> datetime:
    now = utc_now()
    if not token.HasField("expire_time"):
        return now + USUAL_LIFE
    seconds = token.expire_time.seconds
    if not now.timestamp() < seconds <= (now + MAX_LIFE).timestamp():
        raise InvalidArgumentError(
            "token.expire_time", f"must lie ahead, by at most {MAX_LIFE.days} days", reason="EXPIRE_TIME_OUT_OF_RANGE"
        )
    return datetime.fromtimestamp(seconds, UTC)


def _wanted_overlap(request: pb.RotateTokenRequest) -> timedelta:
    if not request.HasField("overlap"):
        return USUAL_OVERLAP
    seconds = request.overlap.seconds
    if not 0 <= seconds <= MAX_OVERLAP.total_seconds() or request.overlap.nanos < 0:
        raise InvalidArgumentError("overlap", f"is {seconds} s; 0 to {MAX_OVERLAP.days} days are allowed")
    return timedelta(seconds=seconds)
