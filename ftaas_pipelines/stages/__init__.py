"""The heavy stages as plain programs: `python -m ftaas_pipelines.stages.<stage> --spec SPEC.json`.

A spec comes in, artifacts go to the store, progress and metrics go out. A stage knows no Dagster
run, no MLflow and no project file: all it may look at stands in its spec, the store and the ledger.
"""
