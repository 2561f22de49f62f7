"""HOW AN ADAPTER IS MADE: inputs, methods, adapters, resume."""
