"""The command lines mote-rewrite, mote-verify and mote-push, and what they print."""
