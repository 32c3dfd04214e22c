"""`distill check --run RUN`: whether a ledger is intact, what is damaged, and how it is repaired.

command     the command: what it says, and in which order a repair is made
integrity   whether SQLite can read the file, and tables, accounts and settings hold what they should
damage      which replies, rows and requests are damaged; notes them in temporary tables
repair      what is done about each, in one transaction
report      the same for people and programs
"""
