"""Rows that say the same: exactly, nearly, or in a split that is held apart."""
