"""WHAT HAPPENS AFTERWARDS: traffic, drift, feedback."""
