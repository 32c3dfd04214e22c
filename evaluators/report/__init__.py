"""`distill report`: a run as one page that people read.

Sections are made apart from each other, each from what it finds (inputs.py), as blocks of blocks.py;
build.py makes HTML of them. A section without data says so in a line at the end.
"""
