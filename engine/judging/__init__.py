"""What a judge said: read from its words, and turned into data sets."""
