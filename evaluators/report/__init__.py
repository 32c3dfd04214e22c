"""`distill report`: a run as one page that people read.

inputs            what a run folder holds, and rows drawn from its ledger
figures, charts   tables, figures and blocks, of which sections are made; how a figure is drawn
run, limits, data, training, judge, scores
                  the sections, made apart from each other: `…_section(found)` gives one, or says in a few
                  words why there is none, which becomes a line at the end
build             all of them as one HTML page
"""
