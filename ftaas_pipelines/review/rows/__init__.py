"""Row review: people look at the rows of a dataset version before anybody signs it."""
