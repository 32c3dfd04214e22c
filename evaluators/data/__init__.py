"""Statistics of data sets: lengths, verbs, scores, duplicates, overlap, shares."""
