"""What Airflow finds as an entry point of the package: the plugin that puts everything here into its API server."""

from typing import Any, ClassVar

from airflow.plugins_manager import AirflowPlugin

URL_PREFIX = "/scan2twin"


class _Applications:
    """Made when the API server asks: every task's process loads its plugins too, and needs nothing of this."""

    def __get__(self, instance: object, owner: type) -> list[dict[str, Any]]:
        from plugins.airflow_host import app

        return [{"app": app, "url_prefix": URL_PREFIX, "name": "scan2twin"}]


class Scan2TwinPlugin(AirflowPlugin):  # type: ignore[misc]  # Airflow is untyped here
    """The ingest API, and the pages in Airflow's menu and on its runs."""

    name = "scan2twin"
    fastapi_apps: ClassVar[Any] = _Applications()
    external_views: ClassVar[list[dict[str, Any]]] = [
        {
            "name": "Record",
            "href": f"{URL_PREFIX}/pair",
            "destination": "nav",
            "category": "browse",
            "url_route": "record",
        },
        {
            "name": "Captures and models",
            "href": f"{URL_PREFIX}/gallery",
            "destination": "nav",
            "category": "browse",
            "url_route": "captures-and-models",
        },
        {
            "name": "3D model",
            "href": f"{URL_PREFIX}/runs/{{RUN_ID}}/model",
            "destination": "dag_run",
            "url_route": "model",
        },
        {
            "name": "Masks",
            "href": f"{URL_PREFIX}/runs/{{RUN_ID}}/masks",
            "destination": "dag_run",
            "url_route": "masks",
        },
    ]
