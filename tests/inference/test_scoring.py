"""Log-likelihoods of continuations against the uncached forward pass."""

import numpy as np
import pytest

from huatuo_jax.errors import ConfigError
from huatuo_jax.inference.engine import Engine
from huatuo_jax.inference.scoring import log_likelihoods
from tests.support.random_models import Uncached, random_model

pytestmark = pytest.mark.usefixtures("compiled_fast")

PREFIX = [5, 9, 200, 31, 77]
CONTINUATIONS = [[1], [2, 3, 4], list(range(100, 140)), [250, 7], [9]]


@pytest.mark.parametrize("name", ["tiny-yi", "tiny-baichuan2-13b"])
@pytest.mark.parametrize("prefix", [PREFIX, PREFIX[:1]])
def test_sums_of_log_probabilities(name, prefix):
    config, params = random_model(name)
    alone = Uncached(config, params)
    best = alone.greedy(prefix, 3)
    found = log_likelihoods(Engine(config, params, (), num_rows=4), prefix, [*CONTINUATIONS, best])
    for continuation, (total, _) in zip([*CONTINUATIONS, best], found, strict=True):
        logits = alone.logits([*prefix, *continuation])[len(prefix) - 1 : -1].astype(np.float64)
        chances = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        assert total == pytest.approx(sum(chances[i, token] for i, token in enumerate(continuation)), rel=1e-5)
    assert found[-1].is_greedy
    assert not all(one.is_greedy for one in found)


def test_the_prefix_is_prefilled_once(monkeypatch):
    config, params = random_model("tiny-yi")
    engine, filled = Engine(config, params, (), num_rows=2), []
    fill = engine.fill
    monkeypatch.setattr(engine, "fill", lambda cache, prompts: filled.append(prompts) or fill(cache, prompts))
    log_likelihoods(engine, PREFIX, CONTINUATIONS)
    assert filled == [{0: PREFIX[:-1]}]


def test_what_cannot_be_scored_is_refused():
    config, params = random_model("tiny-yi")
    engine = Engine(config, params, ())
    with pytest.raises(ConfigError, match="continuation 1 has no tokens"):
        log_likelihoods(engine, PREFIX, [[1], []])
    with pytest.raises(ConfigError, match="the prefix has no tokens"):
        log_likelihoods(engine, [], [[1]])
    with pytest.raises(ConfigError, match="exceeds the context"):
        log_likelihoods(engine, [1] * 500, [[1] * 20])
    assert log_likelihoods(engine, PREFIX, []) == []
