"""Turns rows into stored answers: what to ask, one attempt, the loop, and the state of a stage."""
