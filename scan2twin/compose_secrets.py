"""Makes the secrets of docker-compose.yaml, once; run as `python -m scan2twin.compose_secrets FOLDER`.

Each secret is a file that only its readers can open. What exists is kept: a password that changed under a database or
a store that remembers it would lock everybody out.
"""

import json
import os
import secrets
import sys
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from pathlib import Path

USER_ID = 10001  # the images' user
READABLE = 0o444  # the volume is mounted by services of other users (Postgres) and by nobody else
HOMES = ("/opt/airflow/logs", "/data")  # volumes that start out as root's


def make_secrets(folder: Path) -> None:
    """Write every secret that is not there yet into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    database_password = _kept(folder, "database_password", secrets.token_urlsafe(24))
    password = _kept(folder, "airflow_password", secrets.token_urlsafe(12))
    made: Mapping[str, str] = {
        "database_url": f"postgresql+psycopg2://airflow:{database_password}@postgres/airflow",
        "passwords.json": json.dumps({"admin": password}),
        "fernet_key": urlsafe_b64encode(secrets.token_bytes(32)).decode(),  # Fernet keys are 32 bytes, url-safe base64
        "jwt_secret": secrets.token_urlsafe(48),
        "session_key": secrets.token_urlsafe(48),
        "store_user": secrets.token_hex(10),
        "store_password": secrets.token_hex(20),
    }
    for name, value in made.items():
        _kept(folder, name, value)


def _kept(folder: Path, name: str, value: str) -> str:
    """Return what the file `name` holds, writing `value` first if there is no such file."""
    path, beside = folder / name, folder / f".{name}.part"
    if not path.exists():
        beside.write_text(value, encoding="utf-8")
        beside.chmod(READABLE)
        beside.replace(path)
    return path.read_text(encoding="utf-8")


if __name__ == "__main__":
    make_secrets(Path(sys.argv[1]))
    for home in HOMES:
        os.chown(home, USER_ID, USER_ID)
