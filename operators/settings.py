"""Where and how Airflow runs the stages, from environment variables, read whenever a DAG file is parsed."""

import os
from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from scan2twin.errors import ConfigError
from scan2twin.stages import Stage

PREFIX = "SCAN2TWIN_"


class Runner(StrEnum):
    """What runs a stage."""

    LOCAL = "local"  # a child process of the Airflow task
    KUBERNETES = "kubernetes"  # a pod


class RunnerSettings(BaseModel):
    """How Airflow runs the stages; each field is read from SCAN2TWIN_<FIELD> (docs/airflow.md)."""

    model_config = ConfigDict(frozen=True)

    runner: Runner = Runner.LOCAL
    max_active_runs: int = Field(1, ge=1, description="captures in work at once; more on a cluster")
    retries: int = Field(2, ge=0, description="tries after the first, for failures that a retry may help")
    retry_delay_s: int = Field(30, ge=0, description="before the first retry; doubles with each")

    nightly_cron: str = Field("0 2 * * *", description="when nightly_reconstruction runs, UTC")
    housekeeping_cron: str = Field("0 5 * * 0", description="when housekeeping runs, UTC")
    keep_days: int | None = Field(None, ge=1, description="days that intermediate outputs are kept; all if not set")
    deadline_h: float | None = Field(None, gt=0, description="hours after which the webhook hears of a run")

    # The rest is for pods only.
    store: str = Field("", description="the artifact store's URI, as pods reach it")
    store_secret: str = Field("scan2twin-store", description="Secret with AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY")
    capture_keys: bool = Field(False, description="pods get keys for their capture alone, made by the store's STS")
    namespace: str = "scan2twin"
    image: str = Field(
        "scan2twin/{package}:latest",
        description="`{package}` becomes the package of the stage, so that only reconstruction needs a CUDA image",
    )
    gpu: bool = Field(True, description="ask for the GPUs that a stage can use")
    gpu_runtime_class: str | None = Field(None, description="e.g. nvidia, where the runtime's default is another")
    gpu_pool: str = Field("default_pool", description="Airflow pool that bounds how many GPU stages run at once")

    @model_validator(mode="after")
    def _pods_need_a_store(self) -> Self:
        if self.runner is Runner.KUBERNETES and not self.store:
            raise ValueError(f"{PREFIX}STORE: the kubernetes runner needs the store's address, as pods reach it")
        return self

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """Read the settings; a variable that is missing or empty keeps its default.

        Raises:
            ConfigError: a value is not allowed; every such variable is named.

        """
        values = {name: environment.get(_variable(name)) for name in cls.model_fields}
        try:
            return cls.model_validate({name: value for name, value in values.items() if value})
        except ValidationError as error:
            raise ConfigError(*map(_reason, error.errors())) from None

    def image_of(self, stage: Stage) -> str:
        """Return the image that holds the module of `stage`."""
        return self.image.format(package=stage.module.partition(".")[0])


def _variable(field: str) -> str:
    return PREFIX + field.upper()


def _reason(item: Any) -> str:
    field = "".join(map(str, item["loc"]))
    return f"{_variable(field)}: {item['msg']}, got {item['input']!r}" if field else str(item["msg"])
