"""The contracts people write, `project.yaml` and `policy/platform.yaml`: strict, all errors at once."""
