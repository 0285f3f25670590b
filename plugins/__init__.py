"""scan2twin inside Airflow's API server: the ingest API for phones, and the pages that show captures and models."""
