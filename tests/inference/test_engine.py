"""Batched decoding: every answer is what the row alone would get, whatever stands beside it and whoever had its place before."""

import jax
import numpy as np
import pytest

from huatuo_jax.config import MeshConfig
from huatuo_jax.data.tokenizers import load_tokenizer
from huatuo_jax.errors import ConfigError, DataError
from huatuo_jax.inference.engine import Engine
from huatuo_jax.inference.requests import Request
from huatuo_jax.inference.sampling import Sampling
from huatuo_jax.models.decoder import abstract_params
from huatuo_jax.models.presets import preset
from huatuo_jax.sharding import make_mesh, param_shardings
from tests.support.random_models import Uncached, random_model

FAMILIES = ["tiny-baichuan2-7b", "tiny-baichuan2-13b", "tiny-qwen3"]
"""NormHead with RoPE; NormHead with ALiBi; grouped kv heads, q/k norm and tied embeddings."""

PROMPTS = [[5, 9, 200, 31], [7], list(range(40, 110)), [3, 3, 3], list(range(200, 180, -1)), [99, 98]]
LENGTHS = [12, 5, 9, 20, 1, 16]


def ragged_requests(**settings) -> list[Request]:
    return [Request(prompt, length, **settings) for prompt, length in zip(PROMPTS, LENGTHS, strict=True)]


@pytest.mark.parametrize("name", FAMILIES)
def test_answers_in_refilled_rows_equal_the_uncached_forward_pass(name):
    config, params = random_model(name)
    alone = Uncached(config, params)
    finished = list(Engine(config, params, (), num_rows=2, steps_per_call=3).generate(ragged_requests()))
    # Two rows, six prompts: the last enter rows that others left, while a neighbour is in the middle of its answer.
    assert [index for index, _ in finished] != sorted(index for index, _ in finished)
    for index, answer in finished:
        assert answer.finish_reason == "length"
        assert len(answer.tokens) == LENGTHS[index]
        alone.assert_greedy(PROMPTS[index], answer.tokens)
    assert len({tuple(answer.tokens[:5]) for index, answer in finished if LENGTHS[index] >= 5}) == 5


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.9, 40, 0.9, 1.2, seed=5)], ids=["greedy", "sampled"])
def test_a_row_does_not_depend_on_its_neighbours(sampling):
    config, params = random_model("tiny-yi")
    together = Engine(config, params, (), num_rows=4, steps_per_call=4).complete(ragged_requests(sampling=sampling))
    alone = Engine(config, params, (), num_rows=1)
    for request, answer in zip(ragged_requests(sampling=sampling), together, strict=True):
        assert alone.complete([request])[0].tokens == answer.tokens


def test_the_seed_decides_a_sampled_answer():
    config, params = random_model("tiny-yi")
    requests = [Request(PROMPTS[0], 16, Sampling(1.0, seed=seed)) for seed in (1, 2, 1)]
    first, second, again = (answer.tokens for answer in Engine(config, params, (), num_rows=4).complete(requests))
    assert first == again != second


def test_the_repetition_penalty_counts_prompt_and_answer():
    config, params = random_model("tiny-yi")
    prompt = list(range(0, 256, 2))
    engine = Engine(config, params, (), num_rows=1)
    (answer,) = engine.complete([Request(prompt, 64, Sampling(repetition_penalty=1e6))])
    # What was seen is all but forbidden (a positive logit shrinks to nothing, a negative one grows).
    assert len(set(answer.tokens)) == 64
    assert not set(answer.tokens) & set(prompt)


def test_a_long_prompt_is_prefilled_in_pieces():
    config, params = random_model("tiny-baichuan2-13b", max_length=2048)
    prompt = np.random.default_rng(0).integers(0, 256, 1100).tolist()
    (answer,) = Engine(config, params, (), num_rows=1).complete([Request(prompt, 6)])
    Uncached(config, params, 1200).assert_greedy(prompt, answer.tokens)


def test_an_end_token_ends_a_row_while_others_go_on():
    config, params = random_model("tiny-yi")
    first, second = (a.tokens for a in Engine(config, params, ()).complete([Request(p, 12) for p in PROMPTS[:2]]))
    end = next(token for token in first[2:] if token not in second)
    ended, running = Engine(config, params, (end, 255)).complete([Request(p, 12) for p in PROMPTS[:2]])
    assert (ended.tokens, ended.finish_reason) == (first[: first.index(end)], "end")
    assert (running.tokens, running.finish_reason) == (second, "length")


def test_a_sharded_model_gives_the_same_answers():
    config, params = random_model("tiny-yi")
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    sharded = jax.device_put(params, param_shardings(abstract_params(config), mesh))
    engine = Engine(config, sharded, (), num_rows=3, mesh=mesh)
    assert engine.num_rows == 4
    keys = engine.new_cache(engine.num_rows, 64).keys
    assert keys.sharding.shard_shape(keys.shape) == (2, 1, 1, 256, 16)  # layers, rows, kv heads, slots, head size
    alone = Uncached(config, params)
    for request, answer in zip(ragged_requests(), engine.complete(ragged_requests()), strict=True):
        alone.assert_greedy(request.prompt, answer.tokens)


def test_bfloat16_computes_close_to_float32():
    config, params = random_model("tiny-baichuan2-7b")
    narrow = jax.tree.map(lambda x: x.astype("bfloat16"), params)
    for request, answer in zip(
        ragged_requests(), Engine(config, narrow, (), num_rows=4, dtype="bfloat16").complete(ragged_requests()), strict=True
    ):
        Uncached(config, params).assert_greedy(request.prompt, answer.tokens, margin=0.5)


@pytest.fixture(scope="module", params=["golden dummy prefix", "llama2"])
def text_engine(request, tokenizer_named):
    tokenizer = load_tokenizer(tokenizer_named(request.param))
    config, params = random_model("tiny-llama2", vocab_size=tokenizer.vocab_size)
    return Engine(config, params, (tokenizer.eos_id,), tokenizer=tokenizer, num_rows=2)


def test_a_stop_string_ends_the_text_before_it_and_frees_the_row(text_engine):
    whole = text_engine.complete([Request(PROMPTS[0], 40)])[0].text
    stop = whole[10:13]
    requests = [Request(PROMPTS[0], 40, stop=(stop,)), Request(PROMPTS[3], 12), Request(PROMPTS[5], 12)]
    stopped, *others = text_engine.complete(requests)
    assert (stopped.text, stopped.finish_reason) == (whole[: whole.index(stop)], "stop")
    assert len(stopped.tokens) < 40
    assert [answer.tokens for answer in others] == [text_engine.complete([request])[0].tokens for request in requests[1:]]


def test_a_stream_is_the_answer_in_pieces(text_engine):
    request = Request(PROMPTS[0], 40)
    pieces = list(text_engine.stream(request))
    assert "".join(pieces) == text_engine.complete([request])[0].text
    assert len(pieces) > 20


def test_logits_that_are_not_numbers_name_the_prompt_and_the_step():
    config, params = random_model("tiny-yi")
    tokens = Engine(config, params, ()).complete([Request(PROMPTS[0], 12)])[0].tokens
    poison = next(token for token in tokens[1:] if token not in tokens[:1] + PROMPTS[0] + PROMPTS[1])
    step = tokens.index(poison) + 2  # the token after the first that reads the broken embedding
    broken = {**params, "embedding": params["embedding"].at[poison].set(np.nan)}
    with pytest.raises(DataError, match=rf"case 7: the logits of new token {step} are not finite"):
        Engine(config, broken, (), num_rows=2).complete([Request(PROMPTS[0], 12, name="case 7"), Request(PROMPTS[1], 1)])


def test_impossible_requests_are_refused_before_any_work():
    config = preset("tiny-yi")
    engine = Engine(config, abstract_params(config), ())  # has no weights: any work would fail
    for request, message in (
        (Request([], 4), "prompt 1 has no tokens"),
        (Request([256], 4), r"token id 256, outside 0…255"),
        (Request([-1], 4), r"token id -1, outside 0…255"),
        (Request([1] * 510, 4), "510 tokens; with 4 new ones it exceeds the context of tiny-yi, 512"),
        (Request([1], 0), "max_new_tokens is 0"),
        (Request([1], 4, stop=("x",)), "no tokenizer"),
    ):
        with pytest.raises(ConfigError, match=message):
            engine.complete([Request([1], 1), request])
    assert engine.complete([]) == []
    with pytest.raises(ConfigError, match="number of rows is 0"):
        Engine(config, abstract_params(config), (), num_rows=0)
