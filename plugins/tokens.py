"""The right of one phone to upload one capture: a signed token that ends by itself and can be ended."""

import hmac
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import jwt

LIFETIME = timedelta(hours=12)  # a working day: captures wait on the phone until there is a network
_AUDIENCE = "scan2twin-upload"
_ALGORITHM = "HS256"
_MAX_CHARACTERS = 1000  # a real one has 300


class TokenError(Exception):
    """A token that gives no right, with the reason in plain words."""


@dataclass(frozen=True)
class Pairing:
    """What a token says."""

    id: str
    user: str  # who showed the QR code
    expires_at: datetime  # UTC


def signing_key(secret: str) -> bytes:
    """Derive the key of these tokens from a secret that has other uses too, so that neither passes for the other."""
    return hmac.digest(secret.encode(), _AUDIENCE.encode(), "sha256")


def issue(user: str, key: bytes, lifetime: timedelta = LIFETIME) -> tuple[Pairing, str]:
    """Return a new pairing and its token."""
    pairing = Pairing(uuid4().hex, user, (datetime.now(UTC) + lifetime).replace(microsecond=0))
    claims = {"jti": pairing.id, "sub": user, "exp": pairing.expires_at, "aud": _AUDIENCE}
    return pairing, jwt.encode(claims, key, algorithm=_ALGORITHM)


def verify(token: str, key: bytes) -> Pairing:
    """Return what a token says. Raises TokenError if it is forged, damaged, of another kind or has ended."""
    if len(token) > _MAX_CHARACTERS:
        raise TokenError("this is not an upload token; scan a new QR code")
    try:
        claims = jwt.decode(
            token, key, algorithms=[_ALGORITHM], audience=_AUDIENCE, options={"require": ["jti", "sub", "exp", "aud"]}
        )
    except jwt.ExpiredSignatureError:
        raise TokenError("this pairing has ended; scan a new QR code, the capture stays on the phone") from None
    except jwt.InvalidTokenError:
        raise TokenError("this is not an upload token; scan a new QR code") from None
    return Pairing(claims["jti"], claims["sub"], datetime.fromtimestamp(claims["exp"], UTC))
