"""The command line: one module per command or group of commands, each with its own typer `app`."""
