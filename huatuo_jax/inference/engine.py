"""The generation engine: batched decoding in which the row of a finished request is taken by the next one.

    engine = Engine(config, params, end_ids=(2,), tokenizer=tokenizer, num_rows=32)
    for index, completion in engine.generate([Request(prompt, max_new_tokens=256), …]): …    # as they finish
    for text in engine.stream(Request(prompt, 256)): …

This is the host's part: it gives rows of a static-size cache to requests and reads the tokens. A prompt but for its last token is
prefilled into a free row, from where `decode` goes on, several steps a call (`device.py` computes both). What must hold: a row's
answer does not depend on its neighbours, for each has positions, settings and draws of its own. Next to read: `requests.py`,
which holds what goes in and comes out; `model.py` makes an engine of a directory.
"""

import contextlib
import dataclasses
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jax.typing import DTypeLike

from huatuo_jax.config import ModelConfig, require
from huatuo_jax.data.tokenizers import Tokenizer
from huatuo_jax.inference.device import LARGEST_PIECE, NO_TOKEN, Decoded, DecodeState, admit, bucket, decode, prefill
from huatuo_jax.inference.requests import ActiveRequest, Completion, Request, check_prompt
from huatuo_jax.inference.sampling import SamplingRows
from huatuo_jax.models.cache import KVCache
from huatuo_jax.models.decoder import Decoder, Params, split_decoder
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
        params: Params,
        end_ids: Sequence[int],
        *,
        tokenizer: Tokenizer | None = None,
        num_rows: int = 8,
        dtype: DTypeLike = jnp.float32,
        mesh: Mesh | None = None,
        steps_per_call: int = STEPS_PER_CALL,
    ) -> None:
        """Takes a decoder's parameters.

        Args:
          model: the config, or the graphdef of `split_decoder`.
          params: of the decoder, in any dtype (the dtype of the computation saves a cast per use), sharded over `mesh` or not.
          end_ids: tokens that end an answer.
          tokenizer: makes text of tokens; None = completions have no text.
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
        # Rows are sharded over these axes, and a row cannot be split.
        parts = 1 if mesh is None else int(np.prod([mesh.shape[name] for name in activation_spec(mesh, "batch")[0] or ()]))
        self.num_rows = -(-num_rows // parts) * parts
        self._end_ids = jnp.asarray(list(end_ids), jnp.int32).reshape(-1)
        self._ends = frozenset(end_ids)
        self._steps = steps_per_call

    def generate(self, requests: Sequence[Request]) -> Iterator[tuple[int, Completion]]:
        """Answers requests in the order in which they finish: (place in `requests`, completion).

        Raises:
          ConfigError: before any work, for a request that cannot be served.
          DataError: logits that are not finite; names the prompt and the step.
        """
        for active, completion, _ in self._run(requests, self._steps):
            if completion is not None:
                yield active.index, completion

    def complete(self, requests: Sequence[Request]) -> list[Completion]:
        """`generate`, in the order of the requests."""
        return [completion for _, completion in sorted(self.generate(requests), key=lambda pair: pair[0])]

    def stream(self, request: Request) -> Iterator[str]:
        """The pieces of one answer's text as they become certain. Errors as `generate`."""
        require(self.tokenizer is not None, "this engine has no tokenizer; text cannot be streamed")
        # One step a call: a person should see every token when it is there.
        for _, _, text in self._run([request], steps=1):
            if text:
                yield text

    def _run(self, requests: Sequence[Request], steps: int) -> Iterator[tuple[ActiveRequest, Completion | None, str]]:
        """(request, its completion when it has finished, its new text) after every call, for every row that is not idle."""
        self.check(requests)
        waiting = deque(ActiveRequest(index, request, self.tokenizer) for index, request in enumerate(requests))
        if not waiting:
            return
        longest = max(len(request.prompt) + request.max_new_tokens for request in requests)
        cache = self.new_cache(self.rows_for(len(requests)), longest)
        num_rows = cache.keys.shape[1]
        state = DecodeState.idle(num_rows, self.config.vocab_size)
        active: dict[int, ActiveRequest] = {}
        while waiting or active:
            free = [row for row in range(num_rows) if row not in active]
            entering = {row: waiting.popleft() for row in free[: len(waiting)]}
            if entering:
                cache, state = self._prefill(cache, entering), self._admit(state, entering)
                active |= entering
            # While requests wait, a row that ends is worth coming back for at once; without any, only when all have ended.
            cache, state, done = self._decode(cache, state, active, steps, wait_for_all=not waiting)
            for row, request in sorted(active.items()):
                new = [token for token in done.tokens[:, row].tolist() if token != NO_TOKEN]
                completion, text = request.add(new, bool(done.failed[row]), self._ends)
                if completion is not None:
                    del active[row]
                    if done.left[row] > 0:  # ended by a stop string, which only the host sees
                        state = dataclasses.replace(state, left=state.left.at[row].set(0))
                yield request, completion, text

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

    def _prefill(self, cache: KVCache, entering: dict[int, ActiveRequest]) -> KVCache:
        """Fills rows with the prompts but for their last tokens, prompts of similar length together."""
        # By bucket, so that a short prompt is not padded to the longest. The last token is left to `decode`, whose first step
        # reads its logits: so prefill needs no head at all.
        groups: dict[int, dict[int, Sequence[int]]] = {}
        for row, active in entering.items():
            prompt = active.request.prompt
            groups.setdefault(bucket(len(prompt)), {})[row] = prompt[:-1]
        for prompts in groups.values():
            cache = self.fill(cache, prompts)
        return cache

    def fill(self, cache: KVCache, prompts: dict[int, Sequence[int]]) -> KVCache:
        """The cache with token ids from position 0 on, by row."""
        longest, num_rows = max(map(len, prompts.values())), cache.keys.shape[1]
        height = bucket(len(prompts), 1)
        rows_R = np.full(height, num_rows, np.int32)  # a row beyond the cache: the padding up to the bucket is dropped
        rows_R[: len(prompts)] = list(prompts)
        for start in range(0, longest, LARGEST_PIECE):
            width = bucket(min(longest - start, LARGEST_PIECE))
            tokens_RS = np.zeros((height, width), np.int32)
            for place, prompt in enumerate(prompts.values()):
                piece = prompt[start : start + width]
                tokens_RS[place, : len(piece)] = piece
            starts_R = np.full(height, start, np.int32)
            visible = bucket(start + width)
            with self.on_mesh():
                cache = prefill(self.graphdef, self.params, cache, tokens_RS, starts_R, rows_R, visible=visible, dtype=self.dtype)
        return cache

    def _admit(self, state: DecodeState, entering: dict[int, ActiveRequest]) -> DecodeState:
        """The state with the entering requests in their rows; their prompts, but for the last token, are in the cache."""
        height = bucket(len(entering), 1)
        rows_R = np.full(height, len(state.last), np.int32)
        rows_R[: len(entering)] = list(entering)
        requests = [active.request for active in entering.values()]
        seen_RV: Any = np.zeros((height, self.config.vocab_size), bool)
        for place, request in enumerate(requests):
            seen_RV[place, list(request.prompt)] = True

        def column(values: Sequence[float], dtype: DTypeLike) -> Any:
            return np.resize(np.asarray(values, dtype), height)  # repeats them in the padding, which is dropped

        settings = {
            name: column([getattr(request.sampling, name) for request in requests], of_rows.dtype)
            for name, of_rows in vars(state.sampling).items()
        }
        new = DecodeState(
            last=column([request.prompt[-1] for request in requests], np.int32),
            length=column([len(request.prompt) - 1 for request in requests], np.int32),
            left=column([request.max_new_tokens for request in requests], np.int32),
            seen=seen_RV,
            sampling=SamplingRows(**settings),
        )
        return admit(state, rows_R, new)

    def _decode(
        self, cache: KVCache, state: DecodeState, active: dict[int, ActiveRequest], steps: int, wait_for_all: bool
    ) -> tuple[KVCache, DecodeState, Decoded]:
        longest = max(len(one.request.prompt) + len(one.tokens) for one in active.values())
        with self.on_mesh():
            cache, state, done = decode(
                self.graphdef,
                self.params,
                cache,
                state,
                self._end_ids,
                np.int32(0 if wait_for_all else len(active) - 1),
                # In buckets from 128 on, because each size is a compilation.
                visible=bucket(longest + steps, 128),
                steps=steps,
                sampled=any(one.request.sampling.temperature > 0 for one in active.values()),
                dtype=self.dtype,
            )
        return cache, state, jax.device_get(done)

    def on_mesh(self) -> AbstractContextManager[object]:
        """The mesh in scope while a step is traced; nothing without one."""
        return contextlib.nullcontext() if self.mesh is None else jax.set_mesh(self.mesh)


def _bake_norm_head(graphdef: nnx.GraphDef[Decoder], params: Params, dtype: DTypeLike) -> tuple[Params, ModelConfig]:
    """Parameters with a linear head that gives a NormHead's logits, so that its rows are not normalised at every step."""
    # Else 125,696 × 4096 numbers, as many as two layers and a half of a 7B have, would be read and normalised for every token.
    normalise = jax.jit(
        lambda params: nnx.merge(graphdef, params).output_weights().astype(dtype), out_shardings=params["head"].sharding
    )
    config = dataclasses.replace(nnx.merge(graphdef, params).config, head="linear")
    return {**params, "head": normalise(params)}, config
