"""WHAT HAPPENS TO MY DATASET: sources, formats, records, cleaning, findings, quality, splits."""
