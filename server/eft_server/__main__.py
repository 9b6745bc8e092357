"""`python -m eft_server`: the command line, in the interpreter of one's choice."""

from eft_server.cli import main

main()
