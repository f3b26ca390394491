"""Statistical functions: pure, without records and without torch."""
