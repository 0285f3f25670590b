"""What is shipped for clusters and for compose: right by its schema, and as careful as the texts say."""

import json
import os
import re
import stat
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from check_jsonschema.builtin_schemas import get_builtin_schema
from jsonschema import Draft7Validator

from operators.pods import POD_SECURITY, USER_ID
from operators.settings import RunnerSettings
from scan2twin.compose_secrets import make_secrets

ROOT = Path(__file__).parents[2]
DEPLOY, IMAGES = ROOT / "deploy", ROOT / "images"
NO_MANIFESTS = ("kustomization.yaml", "airflow-values.yaml")
MANIFESTS = sorted(path for path in DEPLOY.glob("*.yaml") if path.name not in NO_MANIFESTS)
DOCKERFILES = sorted(IMAGES.glob("*/Dockerfile"))
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yaml").read_text())


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_manifests_pass_the_strict_schema(path: Path) -> None:
    for document in documents(path):
        kubernetes_validate.validate(document, "1.31", strict=True)
        assert document["metadata"].get("namespace", "scan2twin") == RunnerSettings().namespace


def test_the_kustomization_names_what_there_is() -> None:
    (kustomization,) = documents(DEPLOY / "kustomization.yaml")
    assert sorted(kustomization["resources"]) == [path.name for path in MANIFESTS]


def test_the_namespace_enforces_the_standard_that_pods_keep_to() -> None:
    (namespace,) = documents(DEPLOY / "namespace.yaml")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    assert POD_SECURITY["runAsUser"] == USER_ID


def test_the_charts_values_are_settings_that_exist() -> None:
    (values,) = documents(DEPLOY / "airflow-values.yaml")
    RunnerSettings.from_environment({entry["name"]: entry["value"] for entry in values["env"]})
    known = {f"SCAN2TWIN_{name.upper()}" for name in RunnerSettings.model_fields}
    assert {entry["name"] for entry in values["env"]} <= known


@pytest.mark.parametrize(
    ("policy", "may", "may_not"),
    [
        ("stages", {"s3:GetObject captures/x", "s3:PutObject artifacts/x", "s3:PutObject models/x"},
         {"s3:PutObject captures/x", "s3:DeleteObject captures/x"}),
        ("airflow", {"s3:GetObject captures/x", "s3:DeleteObject artifacts/x"}, {"s3:PutObject models/x"}),
        ("recorder", {"s3:PutObject captures/x"}, {"s3:GetObject models/x", "s3:DeleteObject captures/x"}),
        ("viewer", {"s3:GetObject models/x"}, {"s3:PutObject models/x", "s3:GetObject captures/x"}),
    ],
)  # fmt: skip
def test_store_policies_allow_what_is_needed_and_no_more(policy: str, may: set[str], may_not: set[str]) -> None:
    document = json.loads((DEPLOY / "store-policies" / f"{policy}.json").read_text())
    allowed = {
        f"{action} {resource.removeprefix('arn:aws:s3:::').replace('*', 'x')}"
        for statement in document["Statement"]
        for action in statement["Action"]
        for resource in statement["Resource"]
    }
    assert may <= allowed
    assert not may_not & allowed
    assert not any("*" in action for statement in document["Statement"] for action in statement["Action"])


def test_compose_passes_its_schema() -> None:
    validator = Draft7Validator(get_builtin_schema("vendor.compose-spec"))
    assert [error.message for error in validator.iter_errors(COMPOSE)] == []


def test_compose_listens_on_loopback_and_holds_no_secret() -> None:
    ports = [port for service in COMPOSE["services"].values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith(("127.0.0.1:", "${BIND:-127.0.0.1}:")) for port in ports)
    for service in COMPOSE["services"].values():
        for name, value in (service.get("environment") or {}).items():
            if name.startswith("SCAN2TWIN_"):  # none of these holds a secret
                assert value.startswith("${SCAN2TWIN_") or "${HOST" in value, name
            elif re.search("PASSWORD|SECRET|KEY|CONN(_CMD)?$", name):
                assert name.endswith(("_FILE", "_CMD")), name
                assert value.startswith("/tmp/") or "/run/secrets/" in value, name
    assert COMPOSE["services"]["scheduler"]["environment"]["SCAN2TWIN_RUNNER"] == "${SCAN2TWIN_RUNNER:-local}"


def test_compose_starts_in_order_of_health() -> None:
    for name, service in COMPOSE["services"].items():
        for other, condition in service.get("depends_on", {}).items():
            if condition["condition"] == "service_healthy":
                assert "healthcheck" in COMPOSE["services"][other], f"{name} waits for the health of {other}"


def test_compose_knows_the_health_of_all_that_keeps_running() -> None:
    for name, service in COMPOSE["services"].items():
        once = service.get("restart") == "no" or service.get("network_mode") == "none"
        assert once or "healthcheck" in service, name


def test_compose_hands_every_setting_on() -> None:
    handed_on = set(COMPOSE["services"]["scheduler"]["environment"])
    left = {f"SCAN2TWIN_{name.upper()}" for name in RunnerSettings.model_fields} - handed_on
    assert left == set()


def test_secrets_are_made_once(tmp_path: Path) -> None:
    make_secrets(tmp_path)
    first = {path.name: path.read_text() for path in tmp_path.iterdir()}
    make_secrets(tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == first
    wanted = {
        value.rpartition("/")[2]
        for service in COMPOSE["services"].values()
        for value in map(str, (service.get("environment") or {}).values())
        if "/run/secrets/scan2twin/" in value
    }
    assert wanted <= set(first)
    assert json.loads(first["passwords.json"]) == {"admin": first["airflow_password"]}
    assert first["database_password"] in first["database_url"]
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o444 for path in tmp_path.iterdir())


def test_the_airflow_image_takes_its_secrets_from_files(tmp_path: Path) -> None:
    """Airflow gets a copy of the passwords that it may write: it opens them so, and dies where it cannot."""
    secrets, home = tmp_path / "secrets", tmp_path / "home"
    make_secrets(secrets)
    home.mkdir()
    (home / "airflow").write_text('#!/bin/sh\necho "$AWS_ACCESS_KEY_ID" "$@"\n')
    (home / "airflow").chmod(0o755)
    passwords = COMPOSE["services"]["api-server"]["environment"]
    copy = Path(passwords["AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE"])
    assert str(copy.parent) in COMPOSE["services"]["api-server"]["tmpfs"]
    environment = {
        "PATH": f"{home}:{os.environ['PATH']}",
        "AWS_ACCESS_KEY_ID_FILE": str(secrets / "store_user"),
        "AIRFLOW_PASSWORDS_FILE": str(secrets / Path(passwords["AIRFLOW_PASSWORDS_FILE"]).name),
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(home / copy.name),
    }
    command = [ROOT / "images/airflow/entrypoint.sh", "api-server"]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert said.stdout == f"{(secrets / 'store_user').read_text()} api-server\n"
    assert (home / copy.name).read_text() == (secrets / "passwords.json").read_text()
    assert stat.S_IMODE((home / copy.name).stat().st_mode) == 0o600


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.parent.name)
def test_images_are_pinned_unprivileged_and_copy_what_there_is(path: Path) -> None:
    text = path.read_text().replace("\\\n", " ")
    final = text[text.rindex("\nFROM ") :]
    assert "HEALTHCHECK" in final
    if path.parent.name != "airflow":  # keeps the user of the image it is built on
        assert f"USER {USER_ID}" in final
    for base in re.findall(r"^ARG \w*BASE=(\S+)", text, re.MULTILINE):
        assert base.startswith("scan2twin/") or re.fullmatch(r"[\w./-]+:[\w.-]+@sha256:[0-9a-f]{64}", base), base
    if path.parent.name != "minio":  # its parts are in the Go binary itself: go version -m
        assert "cyclonedx-py environment" in text
        assert "COPY --from=build /opt/venv" in final or "COPY --from=install /opt/venv" in final
    for line in re.findall(r"^COPY (?!--from)(.+)$", text, re.MULTILINE):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists(), source
    assert "NVDIFFRAST=1" not in re.sub("#.*", "", text)
