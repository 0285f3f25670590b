"""Keys that are good for one stage of one capture, and for as long as the stage may take.

The store's server makes them (STS AssumeRole, which MinIO, AWS and SeaweedFS have) from the keys of this process, which
they never exceed: a policy narrows them to what the stage has to read and write.
"""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

from scan2twin.errors import ConfigError
from scan2twin.stages import STAGES, Stage
from scan2twin.store.artifacts import ARTIFACTS
from scan2twin.store.base import ArtifactStore
from scan2twin.store.captures import CAPTURES
from scan2twin.store.models import MODELS
from scan2twin.store.s3 import S3Store
from scan2twin.store.sources import SOURCES


def stage_keys(store: ArtifactStore, capture_id: str, stage: Stage, lifetime: timedelta) -> dict[str, str]:
    """Return AWS_… variables with keys for this stage of this capture.

    Raises:
        ConfigError: the store is a folder, which has no keys.
        StoreError: the server does not make such keys, or cannot be reached.

    """
    if not isinstance(store, S3Store):
        raise ConfigError(f"store {store.uri}: keys for one capture need an S3 store; unset SCAN2TWIN_CAPTURE_KEYS")
    keys = store.temporary_credentials(stage_policy(store.bucket_of, capture_id, stage), lifetime)
    return {
        "AWS_ACCESS_KEY_ID": keys.access_key,
        "AWS_SECRET_ACCESS_KEY": keys.secret_key,
        "AWS_SESSION_TOKEN": keys.session_token or "",
    }


def stage_policy(bucket_of: Callable[[str], str], capture_id: str, stage: Stage) -> dict[str, Any]:
    """Return the S3 policy of a stage's keys; `bucket_of(area)` names the bucket of captures, artifacts, models.

    A stage reads its capture and what earlier stages made of it, and writes its own outputs; the first one may also
    make the capture of another tool's scan that waits (see `store.sources`). It may list every name: a server tells a
    key that may not list a bucket that an object is forbidden where it is only missing.
    """
    captures, artifacts, models = (f"arn:aws:s3:::{bucket_of(area)}" for area in (CAPTURES, ARTIFACTS, MODELS))
    capture = f"{captures}/????/??/??/{capture_id}/*"
    own = [f"{models}/{capture_id}/*" if stage.publishes else f"{artifacts}/{capture_id}/{stage.name}/*"]
    read = [capture, f"{artifacts}/{capture_id}/*", f"{models}/{capture_id}/*"]
    listed = [captures, artifacts, models]
    if stage == STAGES[0]:
        area, _, folder = SOURCES.partition("/")
        uploads = f"arn:aws:s3:::{bucket_of(area)}"
        source = f"{uploads}/{folder}/{capture_id}/*"
        own, read, listed = [*own, capture, source], [*read, source], [*listed, uploads]
    return {
        "Version": "2012-10-17",
        "Statement": [
            {"Effect": "Allow", "Action": ["s3:ListBucket"], "Resource": listed},
            {"Effect": "Allow", "Action": ["s3:GetObject"], "Resource": read},
            {
                "Effect": "Allow",
                "Action": ["s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"],
                "Resource": own,
            },
        ],
    }
