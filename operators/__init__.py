"""Airflow operators built from the one description of the stages."""
