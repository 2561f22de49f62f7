"""`ftaas`, one module per noun."""
