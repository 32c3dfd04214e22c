"""`distill check --run RUN`: whether a ledger is intact, what is damaged, and how it is repaired.

command     the command: what it says, and in which order a repair is made
sound       whether SQLite can read the file, and every table holds what its columns say
find        which replies, rows and requests are damaged; notes them in temporary tables
accounts    whether the stages' accounts hold what their replies add up to
mend        what is done about each, in one transaction
told        the same for people and programs
"""
