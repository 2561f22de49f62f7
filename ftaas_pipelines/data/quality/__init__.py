"""The Great Expectations suite and its report."""
