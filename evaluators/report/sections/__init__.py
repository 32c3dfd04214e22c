"""A module for each section: `section(found)` gives it, or says in a few words why there is none."""
