"""A Hub on this machine for tests: `server.py` is the server process, `client.py` starts and asks it."""
