"""Text from verdicts; nothing is decided here."""
