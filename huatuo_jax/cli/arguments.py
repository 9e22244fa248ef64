"""How both programs declare and read their arguments, and the arguments that several commands share.

Arguments are declared with argparse alone. It is in the standard library and loads in 20 ms (a library that reads type hints
takes 150 ms, half of what `--help` may take), and it puts the fields of a config (`--optimizer.learning-rate`) into the same
parser as a command's own flags: one help, one kind of error, and one rule that finds the flag which a misspelt one meant.

One word means one thing in every command:

    MODEL            a run directory, one of its checkpoints, a base directory, or a Hugging Face folder
    CONFIG           a config file, or the name of a recipe that ships with this project
    --tokenizer      a SentencePiece model, a tokenizer.json, or a folder with one
    --format         a dialogue format; "template" is a Jinja template, or rewriting without a language model (`unify`)
    --layout         how a file's records or a folder's tensors are arranged
    --mesh.AXIS      devices along an axis of the mesh, as in the config
    --sequence-length, --max-length, --max-new-tokens
                     tokens of a packed row; at most of one text or record; at most of one answer

What must hold: a wrong word is refused with the nearest right one, and no module here loads anything heavy. Next to read: a
module of commands, such as `train.py`; `console.py` starts them.
"""

import argparse
import dataclasses
import difflib
import inspect
import re
import typing
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, cast

from huatuo_jax.config import MeshConfig, ModelConfig, require
from huatuo_jax.errors import ConfigError

if TYPE_CHECKING:
    from huatuo_jax.inference.model import EngineOptions, Model
    from huatuo_jax.inference.sampling import Sampling
    from huatuo_jax.weights.hf_config import FolderOptions

Config = TypeVar("Config")
"""A frozen dataclass of settings."""

MAX_NEW_TOKENS = 1024
TEMPERATURE, TOP_P, REPETITION_PENALTY = 0.3, 0.7, 1.1
"""How HuatuoGPT-II was released to chat."""
ONE_DEVICE = MeshConfig(fsdp=1)
CONFIG_HELP = "config file with `def config() -> RunConfig`, or the name of a recipe, such as huatuo2_7b"
MODEL_HELP = "run directory, RUN/checkpoints/STEP, base directory or Hugging Face folder"


class Parser(argparse.ArgumentParser):
    """An argument parser that raises `ConfigError` for wrong words, and names the flag that an unknown one is closest to."""

    _takes_config = False

    def add_config_argument(self) -> None:
        """Declares CONFIG, the first argument, whose fields become flags; `args.config` is the config with what they set."""
        self._takes_config = True
        self.add_argument("config", metavar="CONFIG", help=f"{CONFIG_HELP}; comes first")

    def read(self, words: Sequence[str]) -> argparse.Namespace:
        """The arguments that a command line gives; `--learning_rate` is read as `--learning-rate`."""
        # The config comes first and is loaded before the flags are declared, for its values decide which fields there are:
        # sources of its mixture, its questions.
        words, config = list(words), None
        if self._takes_config and words and not words[0].startswith("-"):
            from huatuo_jax.config_files import load_config  # here, because most commands read no config

            config = load_config(words[0])
            self.usage = self.format_usage().removeprefix("usage: ").strip() + " [--FIELD VALUE …]"  # not a hundred fields
            add_config_fields(self, config)
        flags = words[: words.index("--")] if "--" in words else words
        for place, word in enumerate(flags):
            flag, equals, value = word.partition("=")
            if not flag.startswith("--") or " " in flag:  # a text that begins with dashes is a value
                continue
            flag = flag.replace("_", "-")  # fields are written with "_" in the config
            if flag not in self._option_string_actions:
                # Before argparse looks: it would complain of the flag that is missing because it is misspelt.
                self.error(f"no flag {flag}{did_you_mean(flag, self._option_string_actions)}")
            words[place] = flag + equals + value
        # Intermixed, so that arguments may follow flags: `ask --recall 16 RUN`.
        args = self.parse_intermixed_args(words)
        if config is not None:
            args.config = with_config_fields(config, args)
        return args

    def error(self, message: str) -> NoReturn:
        """Raises ConfigError in place of argparse's own ending, so that all errors of a program look alike."""
        raise ConfigError(f"{message}; `{self.prog} --help` explains the arguments")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """ " (did you mean …?)" with the names that a misspelt word is closest to, or "".

    A dotted name is compared by its last part and that part's initials too: `--learning-rate`, `--learning-rte` and `--lr` all
    mean `--optimizer.learning-rate`.
    """
    names: dict[str, list[str]] = {}
    for name in known:
        last = name.lstrip("-").rpartition(".")[2]
        initials = "".join(part[:1] for part in last.split("-"))
        for spelling in {name.lstrip("-"), last, initials if len(initials) > 1 else last}:
            names.setdefault(spelling, []).append(name)
    # A spelling that is exactly known needs no likeness: two letters such as "lr" are like many names.
    word = word.lstrip("-")
    spellings = [word] if word in names else difflib.get_close_matches(word, names, n=2)
    close = dict.fromkeys(name for spelling in spellings for name in names[spelling])
    return f" (did you mean {' or '.join(list(close)[:3])}?)" if close else ""


def local_path(text: str) -> Path:
    """An argument that must be a local path: refuses `gs://…`, which would silently become a folder of that name."""
    if "://" in text:
        raise argparse.ArgumentTypeError(f"{text}: this command works on local (or mounted) paths; copy it here first")
    return Path(text)


def add_max_rejected(parser: argparse.ArgumentParser) -> None:
    """Declares the share of unusable lines at which a command that reads records fails."""
    help = "fail (exit code 1) if more than this share of lines is rejected (default: 0.01)"
    parser.add_argument("--max-rejected", type=_share, default=0.01, metavar="SHARE", help=help)


def _share(text: str) -> float:
    if not 0 <= float(text) <= 1:
        raise argparse.ArgumentTypeError(f"{text}; it must be between 0 and 1")
    return float(text)


# ---- Fields of a config as flags ----


def add_config_fields(parser: argparse.ArgumentParser, config: Any, prefix: str = "") -> None:
    """Declares a flag for every field of a config, named by its dotted path, with the present value in its help.

    Sources of a mixture and questions are fields too: `--data.mixture.sft.priority`, `--questions.0.prompt`. Nothing is declared
    for an empty mapping or None: what is not there has no fields to set.
    """
    hints, help_texts = typing.get_type_hints(type(config)), _attribute_texts(type(config))
    description = (inspect.getdoc(type(config)) or "").partition("\n\n")[0]
    group = parser.add_argument_group(f"{prefix.rstrip('.')} fields" if prefix else "fields", description.replace("%", "%%"))
    nested: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        path, value, hint = prefix + field.name, getattr(config, field.name), hints[field.name]
        parts = _nested_configs(path, value)
        nested |= parts
        shown = '""' if value == "" else value
        settings: dict[str, Any] = {"help": f"{help_texts.get(field.name, '')} (default: {shown})".strip().replace("%", "%%")}
        if typing.get_origin(hint) is typing.Literal:
            settings["choices"] = typing.get_args(hint)
        elif hint is bool:
            settings["action"] = argparse.BooleanOptionalAction
        elif hint in (int, float, str):
            settings |= {"type": hint, "metavar": hint.__name__.upper()}
        else:
            continue
        # Without a default: what is absent from the namespace keeps the config's value (`with_config_fields`).
        group.add_argument(f"--{path.replace('_', '-')}", dest=path, default=argparse.SUPPRESS, **settings)
    for path, part in nested.items():
        add_config_fields(parser, part, f"{path}.")


def with_config_fields(config: Config, args: argparse.Namespace, prefix: str = "") -> Config:
    """The config with every field that the command line set; raises ConfigError for an impossible value."""
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(cast(Any, config)):
        path, value = prefix + field.name, getattr(config, field.name)
        parts = [with_config_fields(part, args, f"{name}.") for name, part in _nested_configs(path, value).items()]
        if not parts:
            changes[field.name] = getattr(args, path, value)
        elif isinstance(value, Mapping):
            changes[field.name] = dict(zip(value, parts, strict=True))
        else:
            changes[field.name] = tuple(parts) if isinstance(value, tuple) else parts[0]
    return cast(Config, dataclasses.replace(cast(Any, config), **changes))


def _nested_configs(path: str, value: Any) -> dict[str, Any]:
    """Dotted path → config, for a field that holds one, a mapping of them, or several in order."""
    if dataclasses.is_dataclass(value):
        return {path: value}
    pairs = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, tuple) else ()
    return {f"{path}.{key}": part for key, part in pairs}


def _attribute_texts(kind: type) -> dict[str, str]:
    """Field → what the section "Attributes:" of its class says about it."""
    # From the docstring, so that a field is explained in one place, for readers of the code and of --help.
    texts: dict[str, str] = {}
    name = ""
    for line in (inspect.getdoc(kind) or "").partition("Attributes:\n")[2].splitlines():
        start = re.fullmatch(r"  (\w+): (.*)", line)
        name = start[1] if start else name
        texts[name] = start[2] if start else f"{texts[name]} {line.strip()}".strip()
    return texts


# ---- Arguments of the commands that run a model ----


def add_folder_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares what the config.json of a Hugging Face folder may leave open."""
    parser.add_argument("--positions", choices=("rope", "alibi"), help="where the config.json of a Baichuan leaves it open")
    parser.add_argument("--head", choices=("linear", "norm"), help="where the config.json of a Baichuan leaves it open")
    parser.add_argument(
        "--ignore",
        metavar="FIELD",
        action="append",
        default=[],
        help="an unknown field of config.json that does not matter, or sliding_window",
    )


def folder_options(args: argparse.Namespace) -> "FolderOptions":
    """The options of a Hugging Face folder that were given."""
    options: dict[str, Any] = {"positions": args.positions, "head": args.head, "ignore": args.ignore}
    return cast("FolderOptions", {name: value for name, value in options.items() if value})


def add_format_argument(parser: argparse.ArgumentParser, default: str | None = "", origin: str = "the one of MODEL") -> None:
    """Declares the dialogue format."""
    parser.add_argument("--format", metavar="NAME", default=default, help=f"dialogue format (default: {default or origin})")


def add_tokenizer_argument(parser: argparse.ArgumentParser, origin: str = "") -> None:
    """Declares the tokenizer; required where nothing else says which one it is."""
    help = "SentencePiece .model, tokenizer.json, or a folder with one"
    parser.add_argument(
        "--tokenizer",
        metavar="PATH",
        type=local_path,
        required=not origin,
        help=f"{help} (default: {origin})" if origin else help,
    )


def add_dtype_argument(
    parser: argparse.ArgumentParser, help: str, default: str = "auto", choices: Sequence[str] = ("auto", "float32", "bfloat16")
) -> None:
    """Declares the dtype of weights or of a computation."""
    parser.add_argument("--dtype", choices=choices, default=default, help=f"{help} (default: {default})")


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the model, how it is read, and where it is computed."""
    parser.add_argument("model", metavar="MODEL", type=local_path, help=MODEL_HELP)
    add_format_argument(parser)
    add_folder_arguments(parser)
    add_dtype_argument(parser, "of weights, computation and cache; auto = float32 on a CPU, else bfloat16")
    parser.add_argument(
        "--quantize",
        metavar="KIND",
        help="weights of 8 or 4 bits, made while loading: int8 (a scale per output), int4 or int4:GROUP (a scale per GROUP "
        "weights of an output; default: 64)",
    )
    add_config_fields(parser, ONE_DEVICE, "mesh.")


def add_sampling_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares how tokens are drawn, and how many."""
    parser.add_argument(
        "--max-new-tokens",
        metavar="N",
        type=int,
        help=f"longest answer in tokens (default: {MAX_NEW_TOKENS}, or half the context where that is less)",
    )
    parser.add_argument("--temperature", metavar="T", type=float, default=TEMPERATURE, help=f"default: {TEMPERATURE}")
    parser.add_argument("--top-k", metavar="K", type=int, default=0, help="only the K likeliest tokens (default: 0 = all)")
    parser.add_argument("--top-p", metavar="P", type=float, default=TOP_P, help=f"only the likeliest P (default: {TOP_P})")
    parser.add_argument(
        "--repetition-penalty", metavar="R", type=float, default=REPETITION_PENALTY, help=f"default: {REPETITION_PENALTY}"
    )
    parser.add_argument("--greedy", action="store_true", help="always the likeliest token: temperature 0, no penalty")
    parser.add_argument("--seed", metavar="N", type=int, default=42, help="of the draws (default: 42)")
    parser.add_argument("--stop", metavar="TEXT", action="append", default=[], help="ends an answer; may be given several times")


def sampling(args: argparse.Namespace) -> "Sampling":
    """The settings that the arguments ask for; raises ConfigError for impossible ones."""
    from huatuo_jax.inference.sampling import Sampling

    # An empty string is found in every text, so every answer would end before its first token.
    require("" not in args.stop, "--stop is empty; leave it out")
    if args.greedy:
        return Sampling(seed=args.seed)
    return Sampling(args.temperature, args.top_k, args.top_p, args.repetition_penalty, args.seed)


def new_tokens(args: argparse.Namespace, config: ModelConfig) -> int:
    """The longest answer; raises ConfigError for one that no prompt leaves room for."""
    # Half of a short context: the question needs the other half.
    if args.max_new_tokens is None:
        return min(MAX_NEW_TOKENS, config.max_length // 2)
    require(
        1 <= args.max_new_tokens < config.max_length,
        f"--max-new-tokens is {args.max_new_tokens}; it must be at least 1 and below the context of {config.name}, "
        f"{config.max_length}",
    )
    return args.max_new_tokens


def engine_options(args: argparse.Namespace, model: "Model") -> "EngineOptions":
    """Dtype, mesh and quantisation that the arguments ask for; "auto" is the dtype that suits this machine.

    Raises:
      ConfigError: the quantisation fits neither model nor mesh. DoesNotFitError: there are not enough devices.
    """
    import jax

    from huatuo_jax.sharding import make_mesh

    dtype = args.dtype
    if dtype == "auto":
        dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    # No mesh on one device: nothing has to be sharded, and shapes need not divide by anything.
    config = with_config_fields(ONE_DEVICE, args, "mesh.")
    mesh = None if config == ONE_DEVICE else make_mesh(config)
    return {"dtype": dtype, "mesh": mesh, "quantizer": model.quantizer(args.quantize, dtype, mesh)}
