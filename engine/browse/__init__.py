"""`distill browse`: Datasette on a run's ledger, on loopback, read-only, made for reading answers.

    server      checks, binds, serves until it is interrupted
    database    the ledger as Datasette opens it: never writes, never counts for long
    queries     what the front page offers by name, as SQL; a new question is added there
    plugin      Datasette's hooks: which function answers which
    pages       the front page and the page of one pool row
    cells       how a value is shown: text as text, JSON indented, money, times, links
    templates/, static/   the HTML and CSS

Needs the extra `browse`; nothing else of the engine imports it.
"""
