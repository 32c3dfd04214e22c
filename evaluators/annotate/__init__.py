"""`distill annotate`: people vote on two models' answers, on a web page or on Mechanical Turk.

    command     files of questions and answers -> pairs in RUN/votes.db; serve, or write HITs and read results
    server      who gets in; binds, prints the address with its token, serves until it is interrupted
    pages       what is shown, in safe HTML, and what is done with a vote
    ballot      the criteria, the words of the pages; a submitted form -> a Ballot, or what is wrong
    templates/, static/   HTML, CSS and a script that the page can do without

Needs the extra `evaluate`. The votes themselves are store/votes.py's.
"""
