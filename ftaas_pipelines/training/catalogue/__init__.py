"""What there is to choose from, techniques and base models, and advice on which to take. Light: no torch."""
