"""WHAT BECOMES OF AN ADAPTER AFTERWARDS: other forms of it, each held against the adapter itself."""
