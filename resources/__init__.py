"""Dagster's side of the outside: the launcher of stages, tracking (MLflow), alerts."""
