"""Imported by multiprocessing's fork server if the program could not be forked: see `fork_server`."""

from eft_server.engine.launcher.fork_server import become_server

become_server()
