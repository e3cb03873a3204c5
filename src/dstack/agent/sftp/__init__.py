"""SFTP version 3 (draft-ietf-secsh-filexfer-02) with OpenSSH's extensions, over two pipes.

`server` answers requests, `attributes` is how files are described, `wire` how everything is packed. It works in
the file system and as the user of its process: see `dstack.agent.within`, which sees to both.
"""
