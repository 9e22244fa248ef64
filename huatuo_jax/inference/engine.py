"""Prompts in, answers out: batched decoding in which a finished row's place is taken by the next prompt.

    engine = Engine(config, params, end_ids=(2,), tokenizer=tokenizer, num_rows=32)
    for index, answer in engine.generate([Request(prompt, max_new_tokens=256), …]): …    # as they finish
    for text in engine.stream(Request(prompt, 256)): …

The cache of `num_rows` rows has a static size. A prompt but for its last token is prefilled into a free row, from where `decode`
goes on, several steps to a call. A row's answer does not depend on its neighbours: it has its own positions, settings and draws.
"""

import contextlib
import dataclasses
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from huatuo_jax.config import ModelConfig, require
from huatuo_jax.data.tokenizers import Tokenizer
from huatuo_jax.inference.device import LARGEST_PIECE, Rows, Steps, admit, bucket, decode, prefill
from huatuo_jax.inference.occupant import Occupant, rows_of
from huatuo_jax.inference.request import Answer, Request, check_prompt
from huatuo_jax.models.cache import KVCache
from huatuo_jax.models.decoder import Decoder
from huatuo_jax.models.params import split_decoder
from huatuo_jax.sharding import activation_spec

STEPS_PER_CALL = 16
"""Decoding steps between two looks of the host; a stop string is noticed so much later at most."""


class Engine:
    """A model ready to answer.

    Attributes:
      config: of the model (its head is linear: a NormHead's rows are normalised once, here).
      num_rows: requests decoded side by side.
    """

    def __init__(
        self,
        model: ModelConfig | nnx.GraphDef[Decoder],
        params: Any,
        end_ids: Sequence[int],
        *,
        tokenizer: Tokenizer | None = None,
        num_rows: int = 8,
        dtype: Any = jnp.float32,
        mesh: Mesh | None = None,
        steps_per_call: int = STEPS_PER_CALL,
    ) -> None:
        """Takes a decoder's parameters.

        Args:
          model: the config, or the graphdef of `split_decoder`.
          params: of the decoder, in any dtype (the dtype of the computation saves a cast per use), sharded over `mesh` or not.
          end_ids: tokens that end an answer.
          tokenizer: makes text of tokens; None = answers have no text.
          num_rows: rounded up to a multiple of the mesh axes that share rows.
          dtype: of the computation and the cache.
          mesh: over which the cache is sharded.
          steps_per_call: 1 gives out every token at once, more saves the host's share of the time.
        """
        require(num_rows >= 1, f"the number of rows is {num_rows}; it must be at least 1")
        graphdef = split_decoder(model) if isinstance(model, ModelConfig) else model
        self.config = nnx.merge(graphdef, params).config
        self.dtype, self.mesh, self.tokenizer = dtype, mesh, tokenizer
        if self.config.head == "norm":
            params, self.config = _bake_norm_head(graphdef, params, dtype)
            graphdef = split_decoder(self.config)
        self.graphdef, self.params = graphdef, params
        parts = 1 if mesh is None else int(np.prod([mesh.shape[name] for name in activation_spec(mesh, "batch")[0] or ()]))
        self.num_rows = -(-num_rows // parts) * parts
        self._end_ids = jnp.asarray(list(end_ids), jnp.int32).reshape(-1)
        self._ends = frozenset(end_ids)
        self._steps = steps_per_call

    def generate(self, requests: Sequence[Request]) -> Iterator[tuple[int, Answer]]:
        """Answers requests in the order in which they finish: (place in `requests`, answer).

        Raises:
          ConfigError: before any work, for a request that cannot be served.
          DataError: logits that are not finite; names the prompt and the step.
        """
        for occupant, answer, _ in self._run(requests, self._steps):
            if answer is not None:
                yield occupant.index, answer

    def answers(self, requests: Sequence[Request]) -> list[Answer]:
        """`generate`, in the order of the requests."""
        found = dict(self.generate(requests))
        return [found[index] for index in range(len(requests))]

    def stream(self, request: Request) -> Iterator[str]:
        """The pieces of one answer's text as they become certain. Errors as `generate`."""
        require(self.tokenizer is not None, "this engine has no tokenizer; text cannot be streamed")
        for _, _, text in self._run([request], steps=1):
            if text:
                yield text

    def _run(self, requests: Sequence[Request], steps: int) -> Iterator[tuple[Occupant, Answer | None, str]]:
        """(request, its answer when it has finished, its new text) after every call, for every row that runs."""
        self.check(requests)
        waiting = deque(Occupant(index, request, self.tokenizer) for index, request in enumerate(requests))
        if not waiting:
            return
        longest = max(len(request.prompt) + request.max_new_tokens for request in requests)
        cache = self.new_cache(self.rows_for(len(requests)), longest)
        num_rows = cache.keys.shape[1]
        rows = Rows.resting(num_rows, self.config.vocab_size)
        seats: list[Occupant | None] = [None] * num_rows
        while waiting or any(seats):
            entering = {place: waiting.popleft() for place, seat in enumerate(seats) if seat is None and waiting}
            if entering:
                cache = self._prefill(cache, entering)
                rows = self._admit(rows, entering)
                seats = [entering.get(place, seat) for place, seat in enumerate(seats)]
            seated = {place: seat for place, seat in enumerate(seats) if seat is not None}
            cache, rows, done = self._decode(cache, rows, seated, steps, wait_for_all=not waiting)
            for place, seat in seated.items():
                answer, text = seat.take(done.tokens[:, place].tolist(), bool(done.failed[place]), self._ends)
                if answer is not None:
                    seats[place] = None
                    if done.left[place] > 0:  # a stop string, which only the host sees
                        rows = dataclasses.replace(rows, left=rows.left.at[place].set(0))
                yield seat, answer, text

    def check(self, requests: Sequence[Request]) -> None:
        """Raises ConfigError for the first request that cannot be served."""
        for index, request in enumerate(requests):
            name = request.name or f"prompt {index}"
            check_prompt(self.config, request.prompt, request.max_new_tokens, name)
            require(not request.stop or self.tokenizer is not None, f"{name} has stop strings, but the engine has no tokenizer")

    def new_cache(self, num_rows: int, length: int) -> KVCache:
        """An empty cache for rows of up to `length` tokens; few sizes, as a new size is a new compilation."""
        slots = -(-length // 512) * 512 if length > 1024 else max(256, 1 << (length - 1).bit_length())
        return KVCache.empty(self.config, num_rows, slots, self.dtype, self.mesh)

    def rows_for(self, requests: int) -> int:
        """Rows for so many requests: a power of two (few sizes are compiled) that the mesh divides."""
        return self.num_rows if self.mesh is not None else min(self.num_rows, 1 << (requests - 1).bit_length())

    def _prefill(self, cache: KVCache, entering: dict[int, Occupant]) -> KVCache:
        """Fills the places with the prompts but for their last tokens, prompts of similar length together."""
        groups: dict[int, list[int]] = {}
        for place, occupant in entering.items():
            groups.setdefault(bucket(len(occupant.request.prompt)), []).append(place)
        for places in groups.values():
            prompts = [entering[place].request.prompt[:-1] for place in places]
            cache = self.fill(cache, places, prompts)
        return cache

    def fill(self, cache: KVCache, places: Sequence[int], prompts: Sequence[Sequence[int]]) -> KVCache:
        """Writes token ids from position 0 on into rows of the cache."""
        longest, num_rows = max(map(len, prompts)), cache.keys.shape[1]
        height = bucket(len(prompts), 1)
        rows_R = np.full(height, num_rows, np.int32)
        rows_R[: len(places)] = places
        for start in range(0, longest, LARGEST_PIECE):
            width = bucket(min(longest - start, LARGEST_PIECE))
            tokens_RS = np.zeros((height, width), np.int32)
            for row, prompt in enumerate(prompts):
                piece = prompt[start : start + width]
                tokens_RS[row, : len(piece)] = piece
            starts_R = np.full(height, start, np.int32)
            visible = bucket(start + width)
            with self.on_mesh():
                cache = prefill(self.graphdef, self.params, cache, tokens_RS, starts_R, rows_R, visible=visible, dtype=self.dtype)
        return cache

    def _admit(self, rows: Rows, entering: dict[int, Occupant]) -> Rows:
        height = bucket(len(entering), 1)
        places_R = np.full(height, len(rows.last), np.int32)
        places_R[: len(entering)] = list(entering)
        requests = [occupant.request for occupant in entering.values()]
        return admit(rows, places_R, rows_of(requests, height, self.config.vocab_size))

    def _decode(
        self, cache: KVCache, rows: Rows, seated: dict[int, Occupant], steps: int, wait_for_all: bool
    ) -> tuple[KVCache, Rows, Steps]:
        longest = max(len(seat.request.prompt) + len(seat.tokens) for seat in seated.values())
        with self.on_mesh():
            cache, rows, done = decode(
                self.graphdef,
                self.params,
                cache,
                rows,
                self._end_ids,
                np.int32(0 if wait_for_all else len(seated) - 1),
                visible=bucket(longest + steps, 128),
                steps=steps,
                sampled=any(seat.request.sampling.temperature > 0 for seat in seated.values()),
                dtype=self.dtype,
            )
        return cache, rows, jax.device_get(done)

    def on_mesh(self) -> Any:
        """The mesh in scope while a step is traced; nothing without one."""
        return contextlib.nullcontext() if self.mesh is None else jax.set_mesh(self.mesh)


def _bake_norm_head(graphdef: nnx.GraphDef[Decoder], params: Any, dtype: Any) -> tuple[Any, ModelConfig]:
    """Parameters with a linear head that gives a NormHead's logits, so that its rows are not normalised at every step."""
    normalise = jax.jit(
        lambda params: nnx.merge(graphdef, params).output_weights().astype(dtype), out_shardings=params["head"].sharding
    )
    config = dataclasses.replace(nnx.merge(graphdef, params).config, head="linear")
    return {**params, "head": normalise(params)}, config
