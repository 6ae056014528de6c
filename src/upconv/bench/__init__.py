"""`upconv bench`: layers timed against the rivals that are installed, in one process, in turn and in bursts."""
