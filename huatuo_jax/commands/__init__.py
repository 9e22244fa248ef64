"""One module per `huatuo` command: `HELP`, `EXAMPLE`, `add_arguments(parser)` and `run(args) -> exit code`."""
