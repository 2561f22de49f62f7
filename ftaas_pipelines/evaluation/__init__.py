"""HOW GOOD IT IS: test runs, comparison, reports."""
