"""Training on someone else's machines: what is sent, how the job is followed, what comes back."""
