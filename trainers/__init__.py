"""How the student and the reward model learn. Meets the rest of the house only in files."""
