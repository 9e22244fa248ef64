"""Configuration of a Baichuan model for transformers 4.46 to 5: RoPE or ALiBi, linear or NormHead, each a field."""

from transformers import PretrainedConfig


class BaichuanConfig(PretrainedConfig):
    """config.json of a Baichuan 1 or 2 model.

    Attributes:
      positions: "rope" or "alibi".
      head: "linear", or "norm" = logits with L2-normalised rows of `lm_head.weight`, which is stored as it was trained.
      z_loss_weight: weight of mean((max logit)²) in the loss.
    """

    model_type = "baichuan"
    keys_to_ignore_at_inference = ["past_key_values"]  # noqa: RUF012  (transformers reads a list)

    def __init__(
        self,
        vocab_size=125696,
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        hidden_act="silu",
        positions="rope",
        head="norm",
        rope_theta=10000.0,
        rope_scaling=None,
        rope_parameters=None,
        max_position_embeddings=None,
        model_max_length=4096,
        rms_norm_eps=1e-6,
        initializer_range=0.02,
        z_loss_weight=0.0,
        use_cache=True,
        tie_word_embeddings=False,
        **kwargs,
    ):
        if positions not in ("rope", "alibi") or head not in ("linear", "norm"):
            raise ValueError(f"positions {positions!r} is rope or alibi, head {head!r} is linear or norm; correct config.json")
        if rope_scaling is not None or hidden_act != "silu" or tie_word_embeddings:
            raise ValueError("Baichuan has no scaled RoPE, no activation but silu, and a head of its own; correct config.json")
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_attention_heads
        self.hidden_act = hidden_act
        self.positions = positions
        self.head = head
        # transformers 5 writes rope_parameters, transformers 4 rope_theta.
        self.rope_theta = (rope_parameters or {}).get("rope_theta", rope_theta)
        self.model_max_length = model_max_length
        # Absent with ALiBi: readers take its presence for a sign of RoPE.
        if positions == "rope":
            self.max_position_embeddings = max_position_embeddings or model_max_length
        self.rms_norm_eps = rms_norm_eps
        self.initializer_range = initializer_range
        self.z_loss_weight = z_loss_weight
        self.use_cache = use_cache
        kwargs["tie_word_embeddings"] = False
        super().__init__(**kwargs)
