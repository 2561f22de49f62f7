"""Dataset versions for people: rows, differences, cards, exports, the catalog."""
