"""The command line. Each command is one module; nothing heavy is imported before a command needs it."""
