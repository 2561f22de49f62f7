"""WHY IT IS ALLOWED: the ledger, the policy, the gates."""
