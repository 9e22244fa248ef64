"""`huatuo-data encode`: one dialogue in, its tokens and targets out, as one line of JSON on stdout."""

import argparse
import json

from huatuo_jax.cli.arguments import add_format_argument, add_tokenizer_argument
from huatuo_jax.errors import ConfigError

HELP = """Show the tokens and targets of one dialogue.

Prints one JSON line {"tokens": […], "targets": […]} and nothing else; it is the command's result, so --quiet keeps it. Targets
are not shifted; -100 = not learned. An odd last question and no turns at all are encoded too, although a dataset would refuse
them."""

EXAMPLE = """
huatuo-data encode --tokenizer tokenizer.model --turns '["头疼怎么办？", "多休息。"]'
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    add_tokenizer_argument(parser)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--turns", metavar="JSON", help="a JSON list of strings: question, answer, question, …")
    what.add_argument("--text", metavar="S", help="a passage for plain next-token training instead")
    add_format_argument(parser, "huatuo")
    parser.add_argument("--max-length", type=int, default=4096, metavar="N", help="tokens at which it is cut (default: 4096)")
    parser.add_argument("--system", default="", metavar="S", help="system prompt, where the format has one")


def run(args: argparse.Namespace) -> int:
    """Encodes and prints."""
    from huatuo_jax.cli.console import write_report
    from huatuo_jax.data.dialogue import encode_record
    from huatuo_jax.data.formats import get_format
    from huatuo_jax.data.record import Record
    from huatuo_jax.data.tokenizers import load_tokenizer

    dialogue_format = get_format(args.format)
    turns = _parse_turns(args.turns) if args.turns is not None else ()
    if args.text == "":
        raise ConfigError("--text is empty; give a passage")
    if args.text and args.system:
        raise ConfigError("--system belongs to a dialogue (--turns), not to a passage (--text)")
    if args.max_length < 1:
        raise ConfigError(f"--max-length is {args.max_length}; it must be at least 1")
    tokenizer = load_tokenizer(args.tokenizer)
    if args.turns is not None:
        dialogue_format.check(tokenizer)
    record = Record(id="", source="", turns=turns, system=args.system, text=args.text or "")
    encoded = encode_record(record, tokenizer, dialogue_format, args.max_length)
    out = {"tokens": encoded.tokens.tolist(), "targets": encoded.targets.tolist()}
    print(json.dumps(out))
    write_report(args.json, out)
    return 0


def _parse_turns(text: str) -> tuple[str, ...]:
    try:
        turns = json.loads(text)
    except ValueError as error:
        raise ConfigError(f'--turns is not JSON ({error}); give a list of strings, e.g. \'["question", "answer"]\'') from error
    if not isinstance(turns, list) or not all(isinstance(turn, str) for turn in turns):
        raise ConfigError('--turns is not a list of strings; give e.g. \'["question", "answer"]\'')
    return tuple(turns)
