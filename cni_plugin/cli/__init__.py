"""What an operator types: `main` reads the command line, a module per command does the work."""
