"""`distill browse`: Datasette on a run's ledger, on loopback, read-only, made for reading answers.

    app         opens the ledger, which is never written and never counted for long; binds and serves, to this
                machine only
    queries     what the front page offers by name, as SQL; a new question is added there
    pages       the front page, the page of one pool row, and how a value is shown: text as text, JSON
                indented, money, times, links
    templates/, static/   the HTML and CSS

Needs the extra `browse`; nothing else of the engine imports it.
"""
