"""What happens to every text, step by step, and which records go for what they are."""
