"""One module per `huatuo-data` command: `HELP`, `EXAMPLE`, `add_arguments(parser)` and `run(args) -> exit code`."""
