"""Personal data, secrets and toxicity: found, reported by kind and place, treated by policy."""
