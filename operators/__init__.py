"""Airflow operators built from the one description of the stages; they never import what the stages need."""
