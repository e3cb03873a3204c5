"""SSH into jobs from this machine: keys, the entries of `~/.dstack/ssh/config`, forwarded ports, the way in.

Standard library only and nothing else of the project but errors, since `dstack attach` has to be quick. Start
reading at `dstack.api.attach`.
"""
