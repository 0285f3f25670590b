"""Loaded once by Airflow's scheduler, whose forks the tasks are: each then starts without importing this again."""

import os

if os.environ.get("SCAN2TWIN_RUNNER") == "kubernetes":
    import operators.kubernetes  # noqa: F401
