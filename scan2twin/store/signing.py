"""Presigned S3 URLs that also bind headers of the request: AWS Signature Version 4 in the query string.

The S3 client signs only the host. An upload from outside needs more: the size of its body and `If-None-Match`.
"""

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from urllib.parse import quote, urlsplit

_ALGORITHM = "AWS4-HMAC-SHA256"


@dataclass(frozen=True)
class Credentials:
    """An access key, and the region whose scope its signatures have."""

    access_key: str
    secret_key: str
    session_token: str | None
    region: str


def presigned_url(
    method: str, url: str, headers: Mapping[str, str], credentials: Credentials, now: datetime, expires: timedelta
) -> str:
    """Return `url` (scheme, host, encoded path, no query) signed for `method` from `now` (UTC) until `expires` later.

    The request must carry `headers` with just these values. Amazon S3 API Reference, "Authenticating Requests: Using
    Query Parameters (AWS Signature Version 4)".
    """
    parts = urlsplit(url)
    signed = {"host": parts.netloc} | {name.lower(): value for name, value in headers.items()}
    names = ";".join(sorted(signed))
    stamp, day = now.strftime("%Y%m%dT%H%M%SZ"), now.strftime("%Y%m%d")
    scope = f"{day}/{credentials.region}/s3/aws4_request"
    query = {
        "X-Amz-Algorithm": _ALGORITHM,
        "X-Amz-Credential": f"{credentials.access_key}/{scope}",
        "X-Amz-Date": stamp,
        "X-Amz-Expires": str(int(expires.total_seconds())),
        "X-Amz-SignedHeaders": names,
    }
    if credentials.session_token:
        query["X-Amz-Security-Token"] = credentials.session_token
    encoded = "&".join(f"{quote(name, safe='')}={quote(query[name], safe='')}" for name in sorted(query))
    canonical = "\n".join(
        [method, parts.path, encoded, *(f"{name}:{signed[name].strip()}" for name in sorted(signed)), "", names,
         "UNSIGNED-PAYLOAD"]
    )  # fmt: skip
    text = "\n".join([_ALGORITHM, stamp, scope, hashlib.sha256(canonical.encode()).hexdigest()])
    key = f"AWS4{credentials.secret_key}".encode()
    for part in (day, credentials.region, "s3", "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    return f"{url}?{encoded}&X-Amz-Signature={hmac.new(key, text.encode(), 'sha256').hexdigest()}"
