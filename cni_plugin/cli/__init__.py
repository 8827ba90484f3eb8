"""The operator's commands: `main` reads the command line, a module per command does the work."""
