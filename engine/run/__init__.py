"""One command on one run folder: estimate, confirm, collect, show, summarise."""
