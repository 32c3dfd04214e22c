"""ROUGE by reference length: joined, tokenised, scored, compared."""
