"""`huatuo chat`: a conversation on the terminal."""

import argparse
import contextlib
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from huatuo_jax.inference.chat import Conversation

HELP = """Talk to a model: answers stream, history is kept

Draws tokens as HuatuoGPT-II was released (temperature 0.3, top-p 0.7, repetition penalty 1.1, at most 1024 new tokens) unless
told otherwise. Ctrl-C stops an answer, not the program. Reads questions from a pipe too, one a line."""
EXAMPLE = """
huatuo chat runs/quickstart
huatuo chat runs/quickstart --greedy --max-new-tokens 128
echo "感冒了可以喝酒吗？" | huatuo chat runs/quickstart
"""
COMMANDS = """/clear   forget the conversation
/exit    leave (Ctrl-D too)
/help    this list"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    from huatuo_jax.cli.arguments import add_model_arguments, add_sampling_arguments

    add_model_arguments(parser)
    add_sampling_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Runs the command."""
    from huatuo_jax.cli.arguments import answers, choose_dtype, choose_mesh, new_tokens, sampling
    from huatuo_jax.cli.console import make_console, write_report
    from huatuo_jax.inference.chat import Conversation
    from huatuo_jax.inference.loading import open_model

    console, settings = make_console(args.quiet), sampling(args)
    model = open_model(args.model, args.format, **answers(args))
    most = new_tokens(args, model.config)
    dtype, mesh = choose_dtype(args.dtype), choose_mesh(args)
    engine = model.engine(1, dtype, mesh, model.quantizer(args.quantize, dtype, mesh))
    console.print(f"{model.source}; answers up to {most} tokens; /help lists the commands")
    conversation = Conversation(model, engine, settings, most, tuple(args.stop))
    questions = _talk(conversation)
    write_report(args.json, {"model": model.source, "questions": questions, "turns": conversation.turns})
    return 0


def _talk(conversation: "Conversation") -> int:
    """Reads and answers until the input ends; returns the number of questions."""
    asked = 0
    while True:
        line = _read_line()
        if line is None or line == "/exit":
            return asked
        if line == "/clear":
            conversation.clear()
            print("the conversation is forgotten")
        elif line == "/help":
            print(COMMANDS)
        elif line.startswith("/"):
            print(f"no command {line.split()[0]}; there are:\n{COMMANDS}")
        elif line:
            asked += _answer(conversation, line)


def _read_line() -> str | None:
    """The next line, None at the end of the input. Ctrl-C at the prompt gives an empty line up."""
    terminal = sys.stdin.isatty()
    try:
        if terminal:
            return input("问> ").strip()
        line = sys.stdin.buffer.readline()
        return line.decode("utf-8").strip() if line else None
    except EOFError:
        print()
        return None
    except KeyboardInterrupt:
        print("\n/exit or Ctrl-D leaves")
        return ""
    except UnicodeDecodeError as error:
        print(f"that line is not valid UTF-8 (byte {error.start + 1}); it is left out", flush=True)
        return ""


def _answer(conversation: "Conversation", question: str) -> int:
    """Prints one answer as it comes; 1 if there was one."""
    from huatuo_jax.errors import ConfigError, RecordError

    try:
        with contextlib.closing(conversation.ask(question)) as pieces:
            for place, piece in enumerate(pieces):
                if place == 0 and conversation.dropped:
                    print(f"(the context is full: the {conversation.dropped} oldest turns are dropped)")
                print(piece, end="", flush=True)
        print(flush=True)
    except KeyboardInterrupt:
        print(" … stopped", flush=True)
    except (ConfigError, RecordError) as error:
        print(f"error: {error}", flush=True)
        return 0
    return 1
