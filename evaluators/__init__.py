"""How we know: judge scores, ranking, ROUGE-L, human votes, statistics, report."""
