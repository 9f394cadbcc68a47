"""The command lines mote-record, mote-ftri and mote-label."""
