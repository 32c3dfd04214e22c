"""Figures in one manner: a table of numbers in, SVG for a page out."""
