"""A stand-in teacher that follows simple rules: for roles that a model small enough to carry cannot do.

It is labelled as scripted wherever its output shows, and the same question always gets the same reply.
"""
