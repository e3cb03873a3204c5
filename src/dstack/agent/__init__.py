"""Runs tasks on a host. Standard library only, Python 3.8 and later, shipped as one zipapp.

Other packages may import `dstack.agent.protocol` and nothing else. Start reading there.
"""
