"""What holds for all tests."""

import signal

# A shell without job control starts what runs behind it (`make test &`) with Ctrl-C ignored, and so would every program
# that a test starts and interrupts.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
