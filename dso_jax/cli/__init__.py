"""The `dso` command: one module for each subcommand, imported only when it is asked for."""
