"""The trainers' part of the error tree.

DistillError
├── UsageError               exits 2
│   ├── TooLarge             the machine cannot hold this training
│   └── NotTheSame           a resume whose data, recipe or processes differ from the run's
├── TrainingFailed           a training process ended badly; exits 1, its checkpoints are safe
│   └── OutOfMemory          of its device; smaller micro batches need less
└── Stopped                  interrupted; exits 130, resumable
"""

from store.errors import DistillError, UsageError


class TooLarge(UsageError):
    """The machine cannot hold this training: says the numbers and what to use instead."""


class NotTheSame(UsageError):
    """A resume that would not continue the same training run: names what differs."""


class TrainingFailed(DistillError):
    """A training process ended badly."""

    exit_code = 1


class OutOfMemory(TrainingFailed):
    """A training process ran out of its device's memory."""


class Stopped(DistillError):
    """Interrupted by the user."""

    exit_code = 130
