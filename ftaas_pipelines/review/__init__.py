"""WHO LOOKS AND WHO SIGNS: requests, verdicts, decisions."""
