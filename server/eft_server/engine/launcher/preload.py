"""Imported by multiprocessing's fork server, when a program could not be forked itself: see `fork_server`."""

from eft_server.engine.launcher.fork_server import become_server

become_server()
