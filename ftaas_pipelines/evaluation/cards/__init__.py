"""THE MODEL CARD, and what an approver sees. Light: assets and the CLI import it."""
