"""What carries the line on: changed sources, decisions, run status, automation."""
