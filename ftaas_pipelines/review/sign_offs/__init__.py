"""Sign-offs: who is asked about a version or a release, what they said, and whether it counts."""
