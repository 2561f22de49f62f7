"""The engine of the platform: plain Python, one layer per folder, testable without Dagster."""

__version__ = "0.1.0"
