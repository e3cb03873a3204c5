"""What `dstack apply` does, by type of configuration. Start at `dstack.cli.commands.apply`."""
