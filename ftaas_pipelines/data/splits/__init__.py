"""Train, validation and test: groups stay together, and what was placed once stays."""
