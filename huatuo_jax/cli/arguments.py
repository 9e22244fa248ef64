"""Arguments that the commands which run a model share, and what they mean."""

import argparse
from typing import TYPE_CHECKING, Any, cast

from huatuo_jax.config import MeshConfig, ModelConfig, require

if TYPE_CHECKING:
    from huatuo_jax.inference.sampling import Sampling
    from huatuo_jax.weights.hf_config import FolderOptions

MAX_NEW_TOKENS = 1024
TEMPERATURE, TOP_P, REPETITION_PENALTY = 0.3, 0.7, 1.1
"""How HuatuoGPT-II was released to chat."""


def add_folder_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what a user may have to say of a Hugging Face folder."""
    parser.add_argument("--positions", choices=("rope", "alibi"), help="where the config.json of a Baichuan leaves it open")
    parser.add_argument("--head", choices=("linear", "norm"), help="where the config.json of a Baichuan leaves it open")
    parser.add_argument(
        "--ignore", metavar="FIELD", action="append", default=[], help="an unknown field of config.json that does not matter"
    )


def answers(args: argparse.Namespace) -> "FolderOptions":
    """What the user said of a Hugging Face folder, without what was not said."""
    said: dict[str, Any] = {"positions": args.positions, "head": args.head, "ignore": args.ignore}
    return cast("FolderOptions", {name: value for name, value in said.items() if value})


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds how the model is read and where it is computed."""
    parser.add_argument("--template", metavar="NAME", default="", help="dialogue format (default: the one of the run or export)")
    add_folder_arguments(parser)
    parser.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16"),
        default="auto",
        help="of weights, computation and cache (default: auto = float32 on a CPU, else bfloat16)",
    )
    parser.add_argument(
        "--quantize",
        metavar="KIND",
        help="weights of 8 or 4 bits, made while loading: int8 (a scale per output), int4 or int4:GROUP (a scale per GROUP "
        "weights of an output; default: 64)",
    )
    parser.add_argument("--fsdp", metavar="N", type=int, default=1, help="devices that share weights and rows (default: 1)")
    parser.add_argument("--tensor", metavar="N", type=int, default=1, help="devices that share heads and FFN (default: 1)")


def add_sampling_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds how tokens are drawn."""
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

    require("" not in args.stop, "--stop is empty; leave it out")
    if args.greedy:
        return Sampling(seed=args.seed)
    return Sampling(args.temperature, args.top_k, args.top_p, args.repetition_penalty, args.seed)


def new_tokens(args: argparse.Namespace, config: ModelConfig) -> int:
    """The longest answer; raises ConfigError for one that no prompt leaves room for."""
    if args.max_new_tokens is None:
        return min(MAX_NEW_TOKENS, config.max_length // 2)
    require(
        1 <= args.max_new_tokens < config.max_length,
        f"--max-new-tokens is {args.max_new_tokens}; it must be at least 1 and below the context of {config.name}, "
        f"{config.max_length}",
    )
    return args.max_new_tokens


def choose_dtype(name: str) -> str:
    """The dtype of "auto" on this machine, or the one asked for."""
    import jax

    if name != "auto":
        return name
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def choose_mesh(args: argparse.Namespace) -> Any:
    """The mesh asked for, or None for one device; raises DoesNotFitError if there are not enough devices."""
    from huatuo_jax.sharding import make_mesh

    if args.fsdp == args.tensor == 1:
        return None
    return make_mesh(MeshConfig(fsdp=args.fsdp, tensor=args.tensor))
