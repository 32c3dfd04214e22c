"""How every test runs: hypothesis draws the same examples each time, and a busy machine fails none.

Torch computes with one thread: what it computes here is small, and threads that wait for each other on a
busy machine took a hundred times as long.

A terminal that is lost is noticed by the processes under test, also where the tests were started by nohup.
"""

import os
import signal

from hypothesis import settings

settings.register_profile("distill", max_examples=50, deadline=None, derandomize=True, database=None)
settings.load_profile("distill")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported
signal.signal(signal.SIGHUP, signal.SIG_DFL)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # so does a shell to what it starts in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)
