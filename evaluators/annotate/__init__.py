"""`distill annotate`: people vote on two models' answers, on a web page or on Mechanical Turk.

    study       files of questions and answers -> pairs in RUN/votes.db
    server      binds, prints the address with its token, serves until it is interrupted
    doors       who gets in: token, host, origin; the headers of every reply
    pages       what is shown and what is done with a vote
    form        a submitted form -> a Ballot, or what is wrong with it
    markdown    an answer -> HTML in which nothing works but reading
    words       the criteria, in the words that the page and the HIT use
    mturk       the HIT's page and its table; mturk_results: their way back
    templates/, static/   HTML, CSS and a script that the page can do without

Needs the extra `evaluate`. The votes themselves are store/votes.py's.
"""
