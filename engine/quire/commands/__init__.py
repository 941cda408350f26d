"""The subcommands of `quire`; each module has `run(prog, arguments) -> exit status`."""
