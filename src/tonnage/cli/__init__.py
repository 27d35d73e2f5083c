"""The `tonnage` command: one file a command. Here, and only here, stores are built and the environment is read."""
