import jax
import jax.numpy as jnp
import numpy as np
import pytest

from huatuo_jax.errors import ConfigError
from huatuo_jax.models import attention
from huatuo_jax.models.attention import BACKENDS, Backend, Visibility, alibi_slopes, attend, resolve_attention
from huatuo_jax.models.attention_splash import splash_attention
from huatuo_jax.models.presets import preset

pytestmark = pytest.mark.usefixtures("compiled_fast")

SEGMENTS = np.array([[1] * 5 + [2] * 9 + [3] * 4 + [0] * 6, [1] * 24], np.int32)


def plain(q, k, v, segments, slopes):
    """Scores of all pairs, with each kv head written out once per query head."""
    group = q.shape[2] // k.shape[2]
    scores = jnp.einsum("bind,bjnd->bnij", q, jnp.repeat(k, group, axis=2)) / np.sqrt(q.shape[3])
    i, j = np.indices((q.shape[1], q.shape[1]))
    if slopes is not None:
        scores += slopes[:, None, None] * (j - i)
    seen = (segments[:, None, :, None] == segments[:, None, None, :]) & (j <= i)
    return jnp.einsum("bnij,bjnd->bind", jax.nn.softmax(jnp.where(seen, scores, -jnp.inf)), jnp.repeat(v, group, axis=2))


def random_inputs(heads, kv_heads, length=SEGMENTS.shape[1], size=8):
    draw = np.random.default_rng(0)
    return [draw.normal(size=(2, length, n, size)).astype(np.float32) for n in (heads, kv_heads, kv_heads, heads)]


def out_and_gradients(function, q, k, v, cotangent):
    @jax.jit
    def run(q, k, v):
        out, pull = jax.vjp(function, q, k, v)
        return [out, *pull(cotangent)]

    return run(q, k, v)


def assert_all_close(ours, expected):
    for a, b in zip(ours, expected, strict=True):
        assert np.abs(a - b).max() <= 1e-5 * np.abs(b).max()


@pytest.mark.parametrize("kv_heads", [3, 1])
@pytest.mark.parametrize("alibi", [False, True])
def test_backends_match_plain_attention_within_segments(kv_heads, alibi):
    q, k, v, cotangent = random_inputs(3, kv_heads)
    slopes = jnp.asarray(alibi_slopes(3)) if alibi else None
    expected = out_and_gradients(lambda q, k, v: plain(q, k, v, SEGMENTS, slopes), q, k, v, cotangent)
    visibility = Visibility(jnp.asarray(SEGMENTS), slopes)
    for name in ("einsum", "dot_product", "blocked"):
        ours = out_and_gradients(lambda q, k, v, name=name: attend(name, q, k, v, visibility), q, k, v, cotangent)
        assert_all_close(ours, expected)


@pytest.mark.parametrize(("length", "blocks"), [(300, 3), (1030, 8)])
def test_blocked_matches_einsum_over_several_blocks(length, blocks):
    assert len(attention.query_blocks(length)) == blocks
    q, k, v, cotangent = random_inputs(2, 1, length)
    segments = jnp.sort(jax.random.randint(jax.random.key(1), (2, length), 1, 5), axis=1)
    visibility = Visibility(segments, jnp.asarray(alibi_slopes(2)))
    ours, expected = (
        out_and_gradients(lambda q, k, v, name=name: attend(name, q, k, v, visibility), q, k, v, cotangent)
        for name in ("blocked", "einsum")
    )
    assert_all_close(ours, expected)


@pytest.mark.parametrize("kv_heads", [2, 1])
def test_splash_matches_einsum_within_segments(kv_heads):
    q, k, v, cotangent = random_inputs(2, kv_heads, length=200)
    segments = jnp.asarray(np.repeat([[1, 2, 3, 0], [1, 1, 2, 2]], 50, axis=1), jnp.int32)
    visibility = Visibility(segments)
    expected = out_and_gradients(lambda q, k, v: attend("einsum", q, k, v, visibility), q, k, v, cotangent)
    ours = out_and_gradients(lambda q, k, v: splash_attention(q, k, v, segments, interpret=True), q, k, v, cotangent)
    assert_all_close(ours, expected)


def test_alibi_bias_is_exact_at_long_distance():
    slopes = jnp.asarray(alibi_slopes(8))[jnp.array([0, 7])]
    bias_NST = Visibility(jnp.ones((1, 4097), jnp.int32), slopes).bias_NST()
    assert bias_NST.dtype == jnp.float32
    assert bias_NST[:, 4096, 0].tolist() == [-4096 / 2, -4096 / 2**8]
    assert bias_NST[0, 4096, 4095:].tolist() == [-0.5, 0.0]


def test_auto_takes_splash_on_tpu_where_the_model_has_rope():
    assert resolve_attention("auto", preset("yi-34b"), "tpu") == "splash"
    assert resolve_attention("auto", preset("baichuan2-13b"), "tpu") == "blocked"


def test_what_a_backend_cannot_do_is_refused_with_the_ones_that_can():
    with pytest.raises(ConfigError, match=r"'splash' cannot do: alibi .*backends that can: blocked, einsum, dot_product"):
        resolve_attention("splash", preset("baichuan2-13b"), "tpu")
    with pytest.raises(ConfigError, match="cannot do: platform cpu"):
        resolve_attention("splash", preset("baichuan2-7b"), "cpu")
    with pytest.raises(ConfigError, match="'flash' is unknown"):
        resolve_attention("flash", preset("baichuan2-7b"), "cpu")


def test_a_backend_that_ignores_segments_is_refused(monkeypatch):
    blind = Backend(attention.einsum_attention, frozenset({"cpu"}), segments=False, alibi=True, gqa=True)
    monkeypatch.setitem(BACKENDS, "blind", blind)
    assert resolve_attention("blind", preset("yi-34b"), "cpu", needs_segments=False) == "blind"
    with pytest.raises(ConfigError, match="'blind' cannot do: segments"):
        resolve_attention("blind", preset("yi-34b"), "cpu", needs_segments=True)
