"""The in-server side of `dstack.proxy`: routes and permissions from the database, remembered until they change.

Imports `access` and `db`. Start at `deps`.
"""
