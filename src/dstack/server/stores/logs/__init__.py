"""Job logs: kept by time and by line, stored once, read at the cost of what is returned.

`base` is the interface, `files` the store on this machine's disk (`logfile` and `records` are its parts).
May import core, the agent's protocol and the settings.
"""
